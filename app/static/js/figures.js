/** The figures: how fast it is, against what, and how soon it obeys. */

import { byId, setText } from './dom.js';

const NONE = '–';

function number(value, digits = 1) {
  return value === null || value === undefined ? NONE : value.toFixed(digits);
}

export class Figures {
  constructor() {
    const names = [
      'ratio', 'ratio-text', 'lane-now', 'fps', 'lane-uncached', 'fps-uncached', 'skip', 'latency', 'game-fps',
      'frame-index',
    ];
    this.texts = Object.fromEntries(names.map((name) => [name, byId(name)]));
    this.now = byId('bar-now');
    this.uncached = byId('bar-uncached');
    this.mark = byId('mark-game');
  }

  /**
   * @param {{achieved, uncached, game, skipRatio, latency, frame}} figures null where unknown
   * @param {?[string, string]} rivals of a comparison: their names, `uncached` being the second one's speed
   */
  show({ achieved, uncached, game, skipRatio, latency, frame }, rivals = null) {
    const ratio = achieved && uncached ? achieved / uncached : null;
    const shown = rivals && ratio < 1 ? 1 / ratio : ratio;
    setText(this.texts.ratio, ratio === null ? NONE : `${shown.toFixed(1)}×`);
    this.texts.ratio.dataset.known = String(ratio !== null);
    const slower = ratio !== null && ratio < 1;
    const rivalText = slower ? 'B faster than A' : 'A faster than B';
    const plain = slower ? 'the uncached speed' : 'faster than uncached';
    setText(this.texts['ratio-text'], rivals ? rivalText : plain);
    setText(this.texts['lane-now'], rivals ? `A ${rivals[0]}` : 'Cached');
    setText(this.texts['lane-uncached'], rivals ? `B ${rivals[1]}` : 'Uncached');
    setText(this.texts.fps, number(achieved));
    setText(this.texts['fps-uncached'], number(uncached));
    setText(this.texts.skip, skipRatio === null ? NONE : `${Math.round(100 * skipRatio)} %`);
    setText(this.texts.latency, latency === null ? NONE : `${Math.round(latency)} ms`);
    setText(this.texts['game-fps'], game ? `${number(game)} frames/s` : NONE);
    setText(this.texts['frame-index'], frame === null ? NONE : String(frame));
    const most = Math.max(game ?? 0, achieved ?? 0, uncached ?? 0, 1e-6) * 1.12;
    this.now.style.setProperty('--part', String((achieved ?? 0) / most));
    this.uncached.style.setProperty('--part', String((uncached ?? 0) / most));
    this.mark.hidden = !game;
    this.mark.style.setProperty('--part', String((game ?? 0) / most));
  }
}
