/** Shows a moment of the world: colour, depth, classes of tokens, and how far two of them are apart. */

import { byId, setText } from './dom.js';
import { DepthRange, drawClasses, drawDepth, drawDifference, drawPicture, psnr } from './pictures.js';
import { Strip } from './strip.js';

const SIDES = ['a', 'b'];

/** Decibels as text. */
function decibels(error) {
  return error === 0 ? 'identical' : `${psnr(error).toFixed(1)} dB`;
}

export class Stage {
  constructor() {
    this.rgb = SIDES.map((side) => byId(`rgb-${side}`));
    this.classes = SIDES.map((side) => byId(`classes-${side}`));
    this.strips = SIDES.map((side) => new Strip(byId(`strip-${side}`)));
    this.depth = byId('depth');
    this.difference = byId('difference');
    this.gain = byId('gain');
    this.psnr = byId('psnr');
    this.mean = byId('psnr-mean');
    this.views = byId('views');
    this.showClasses = false;
    this.range = new DepthRange();
    this.forgetErrors();
    this.last = null;
    this.gain.addEventListener('change', () => this.redraw());
  }

  /** Lay the page out for a model: its pictures' shape, and what it shows. */
  use(model) {
    const { width, height } = model.resolution;
    this.views.style.setProperty('--shape', `${width} / ${height}`);
    this.picture = (model.modalities.find(({ channels }) => channels === 3) ?? model.modalities[0]).name;
    const map = model.modalities.find(({ channels }) => channels === 1);
    this.map = map?.name ?? null;
    this.range = new DepthRange();
    this.views.dataset.depth = String(this.map !== null);
  }

  set compare(on) {
    this.views.dataset.compare = String(on);
    document.body.dataset.compare = String(on);
    this.forgetErrors();
    this.strips[1].clear();
  }

  get compare() {
    return this.views.dataset.compare === 'true';
  }

  /** What a video of the stage shows, from left to right. */
  get recorded() {
    if (this.compare) return [this.rgb[0], this.rgb[1], this.difference];
    return this.map ? [this.rgb[0], this.depth] : [this.rgb[0]];
  }

  forgetErrors() {
    this.errors = { sum: 0, count: 0 };
  }

  clear() {
    for (const strip of this.strips) strip.clear();
    this.forgetErrors();
    this.last = null;
  }

  /** @param {{frames: object[], bitmaps: object[]}} moment a frame of every side */
  show(moment) {
    const first = this.last === null || this.last !== moment;
    this.last = moment;
    const wanted = moment.frames.length > 1;
    const pixels = moment.bitmaps.map((bitmaps, side) => drawPicture(this.rgb[side], bitmaps[this.picture], wanted));
    moment.frames.forEach((frame, side) => {
      this.classes[side].hidden = !this.showClasses;
      if (this.showClasses) drawClasses(this.classes[side], frame.step, frame.index, this.picture);
      if (first && frame.step && frame.index === frame.step.first) this.strips[side].add(frame.step.stats.chunks);
    });
    if (wanted) this.showDifference(pixels, first);
    else if (this.map) drawDepth(this.depth, moment.bitmaps[0][this.map], this.range);
  }

  showDifference([first, second], isNew) {
    const error = drawDifference(this.difference, first, second, Number(this.gain.value));
    if (isNew) {
      this.errors.sum += error;
      this.errors.count += 1;
    }
    const mean = this.errors.sum / this.errors.count;
    setText(this.psnr, `PSNR ${decibels(error)}`);
    setText(this.mean, `, mean ${decibels(mean)}`);
    this.psnr.dataset.db = error === 0 ? 'Infinity' : psnr(error).toFixed(2);
  }

  redraw() {
    if (this.last) this.show(this.last);
    for (const canvas of this.classes) canvas.hidden = !this.showClasses;
  }
}
