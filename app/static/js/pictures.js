/** Pixels: what is drawn on the canvases. */

import { DEPTH_RAMP, classColour } from './colours.js';

function contextOf(canvas, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return canvas.getContext('2d', { willReadFrequently: true });
}

/** Draw a picture at its own size; the style sheet enlarges it. Returns its pixels if they are wanted. */
export function drawPicture(canvas, bitmap, wanted = false) {
  const context = contextOf(canvas, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return wanted ? context.getImageData(0, 0, bitmap.width, bitmap.height) : null;
}

/** The range of depths that is shown: it follows what is seen, slowly, so that colours do not flicker. */
export class DepthRange {
  constructor() {
    this.low = null;
    this.high = null;
  }

  follow(low, high) {
    if (this.low === null) [this.low, this.high] = [low, high];
    this.low += (low - this.low) * 0.1;
    this.high += (high - this.high) * 0.1;
  }
}

/** Draw a map of depths in colours, near ones bright. */
export function drawDepth(canvas, bitmap, range) {
  const image = drawPicture(canvas, bitmap, true);
  const { data } = image;
  let low = 255;
  let high = 0;
  for (let i = 0; i < data.length; i += 4) {
    low = Math.min(low, data[i]);
    high = Math.max(high, data[i]);
  }
  range.follow(low, high);
  const scale = 255 / Math.max(range.high - range.low, 1);
  for (let i = 0; i < data.length; i += 4) {
    const place = 3 * Math.max(0, Math.min(255, Math.round((data[i] - range.low) * scale)));
    data[i] = DEPTH_RAMP[place];
    data[i + 1] = DEPTH_RAMP[place + 1];
    data[i + 2] = DEPTH_RAMP[place + 2];
  }
  canvas.getContext('2d').putImageData(image, 0, 0);
}

/**
 * Draw the classes of a frame's tokens, one pixel each.
 * @param {{maps: object[], frames: number, first: number}} step
 */
export function drawClasses(canvas, step, index, modality) {
  const maps = step?.maps.filter((map) => map.modality === modality) ?? [];
  if (!maps.length) {
    contextOf(canvas, 1, 1).clearRect(0, 0, 1, 1);
    return;
  }
  const chunkFrames = step.frames / maps.length;
  const within = index - step.first;
  const map = maps[Math.min(Math.floor(within / chunkFrames), maps.length - 1)];
  const [times, height, width] = map.grid;
  const time = Math.floor(((within % chunkFrames) * times) / chunkFrames);
  const context = contextOf(canvas, width, height);
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i += 1) {
    image.data.set(classColour(map.classes[time * width * height + i]), 4 * i);
  }
  context.putImageData(image, 0, 0);
}

/**
 * Draw how far two pictures are apart, amplified around grey, and measure it.
 * @returns {number} mean squared error of the colours, in counts of 8 bits
 */
export function drawDifference(canvas, first, second, gain) {
  const { width, height } = first;
  const context = contextOf(canvas, width, height);
  const image = context.createImageData(width, height);
  let sum = 0;
  for (let i = 0; i < image.data.length; i += 4) {
    for (let c = 0; c < 3; c += 1) {
      const difference = first.data[i + c] - second.data[i + c];
      sum += difference * difference;
      image.data[i + c] = Math.abs(difference) * gain;
    }
    image.data[i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return sum / (3 * width * height);
}

/** Decibels of a mean squared error of 8-bit pictures; Infinity if there is none. */
export function psnr(meanSquaredError) {
  return 10 * Math.log10(255 ** 2 / meanSquaredError);
}
