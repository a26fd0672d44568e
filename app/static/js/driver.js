/** Drives sessions in lock-step: each step is asked for here, the same action for all of them. */

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Driver {
  /**
   * @param {import('./track.js').Track[]} tracks that step together
   * @param {{next: () => any, rests: () => void, pace: () => number}} ways
   *   `next` gives the action of the next step, null for none; `rests` is told that the world waits for one;
   *   `pace` is how many milliseconds a step shall take at least
   */
  constructor(tracks, ways) {
    this.tracks = tracks;
    this.ways = ways;
    this.stopped = false;
    this.wake = () => undefined;
  }

  /**
   * Take step after step until it is stopped.
   * @throws {import('./track.js').StepLost} a step was refused, or the connection is gone
   */
  async run() {
    while (!this.stopped) {
      const action = this.ways.next();
      if (action === null) {
        this.ways.rests();
        await new Promise((resolve) => { this.wake = resolve; });
        continue;
      }
      const began = performance.now();
      await Promise.all(this.tracks.map((track) => track.step(action)));
      await pause(Math.max(0, this.ways.pace() - (performance.now() - began)));
    }
  }

  /** Begin no further step. */
  stop() {
    this.stopped = true;
    this.wake();
  }
}
