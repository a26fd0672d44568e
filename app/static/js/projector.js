/** From frames as they arrive to moments as they are shown: frames of all sides together, in order, evenly. */

import { Presenter } from './presenter.js';

export class Projector {
  /**
   * @param {import('./stage.js').Stage} stage
   * @param {{interval: () => number, shown: (moment: object) => void}} ways
   *   `interval` is milliseconds from frame to frame; `shown` is told of every moment
   */
  constructor(stage, { interval, shown }) {
    this.stage = stage;
    this.shown = shown;
    this.presenter = new Presenter((moment) => this.present(moment), interval);
    this.tracks = [];
    this.begin([]);
  }

  set smooth(on) {
    this.presenter.smooth = on;
  }

  /** Count frames anew, for these tracks: what was to be shown is of another past. */
  begin(tracks) {
    this.tracks = tracks;
    this.presenter.clear();
    this.joined = new Map();
    this.seq = 0;
    this.frame = (tracks[0]?.session.frames ?? 0) - 1;
  }

  /** A frame has arrived. */
  add(track, frame) {
    const step = track.session.frames_per_step;
    const frames = this.joined.get(frame.index) ?? [];
    frames[this.tracks.indexOf(track)] = frame;
    this.joined.set(frame.index, frames);
    if (!this.tracks.every((_, side) => frames[side])) return;
    // What came before and has no partner was lost on the way.
    for (const index of this.joined.keys()) if (index <= frame.index) this.joined.delete(index);
    this.presenter.push({ frames, step });
  }

  present(moment) {
    const [frame] = moment.frames;
    this.stage.show(moment);
    if (frame.seq > this.seq) {
      this.seq = frame.seq;
      if (frame.sentAt !== null) this.tracks[0]?.meter.latency(performance.now() - frame.sentAt);
    }
    this.frame = frame.index;
    this.shown(moment);
  }
}
