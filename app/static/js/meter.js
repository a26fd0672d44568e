/** Running figures, from what really arrives. */

const STEPS = 16;
const LATENCIES = 32;

/** Median of numbers; null of none. */
function median(numbers) {
  if (!numbers.length) return null;
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Frames per second of the latest steps, and latencies from an action to its frame on the screen. */
export class Meter {
  constructor() {
    this.restart();
    this.pace = null;
    this.rate = null;
    this.latencies = [];
  }

  /** Forget the pace: after a pause, the time between two steps says nothing. */
  restart() {
    this.steps = [];
  }

  /** A step has arrived. */
  step(now, frames) {
    this.steps.push({ now, frames });
    if (this.steps.length > STEPS) this.steps.shift();
  }

  latency(milliseconds) {
    this.latencies.push(milliseconds);
    if (this.latencies.length > LATENCIES) this.latencies.shift();
  }

  /** Lately, or before the last pause; null until two steps have arrived. */
  get framesPerSecond() {
    if (this.steps.length > 1) {
      const seconds = (this.steps.at(-1).now - this.steps[0].now) / 1000;
      const frames = this.steps.slice(1).reduce((sum, step) => sum + step.frames, 0);
      if (seconds > 0) this.rate = frames / seconds;
    }
    return this.rate;
  }

  /** Milliseconds between steps, lately or before the last pause; null until two have arrived. */
  get stepMilliseconds() {
    const recent = this.steps.slice(-5);
    if (recent.length > 1) this.pace = (recent.at(-1).now - recent[0].now) / (recent.length - 1);
    return this.pace;
  }

  get latencyMedian() {
    return median(this.latencies);
  }
}
