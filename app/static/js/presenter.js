/** Shows frames, which arrive a step at a time, evenly over the time that a step takes. */

const LATE_STEPS = 1.5;
const CATCH_UP = 0.7;
const LONGEST_LAG_MS = 40;

export class Presenter {
  /**
   * @param {(moment: object) => void} show draws a moment, whose pictures are decoded
   * @param {() => number} interval milliseconds from one frame to the next, as measured
   */
  constructor(show, interval) {
    this.show = show;
    this.interval = interval;
    this.smooth = true;
    this.queue = [];
    this.due = 0;
    this.running = false;
    this.generation = 0;
  }

  /** @param {{frames: object[], step: number}} moment one frame of every track; `step` is how many come at once */
  push(moment) {
    const generation = this.generation;
    moment.bitmaps = null;
    this.queue.push(moment);
    Promise.all(moment.frames.map((frame) => frame.pictures)).then((bitmaps) => {
      if (generation !== this.generation) return;
      moment.bitmaps = bitmaps;
      this.wake();
    });
  }

  /** Forget what has not been shown. */
  clear() {
    this.queue = [];
    this.due = 0;
    this.generation += 1;
  }

  wake() {
    if (this.running) return;
    this.running = true;
    requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    this.running = false;
    // Count from when the first was due, unless that was long ago: a display's rounding must not add up.
    if (now - this.due > Math.max(this.interval(), LONGEST_LAG_MS)) this.due = now;
    while (this.queue[0]?.bitmaps && (!this.smooth || now >= this.due)) {
      const moment = this.queue.shift();
      this.show(moment);
      const late = this.queue.length > LATE_STEPS * moment.step;
      this.due += this.interval() * (late ? CATCH_UP : 1);
    }
    if (this.queue[0]?.bitmaps) this.wake();
  }
}
