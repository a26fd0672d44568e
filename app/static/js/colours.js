/** Colours of what is no photograph. They are those of the style sheet. */

/** From near to far. */
const DEPTH_STOPS = [
  [255, 244, 214], [255, 196, 112], [236, 112, 84], [163, 58, 112], [84, 34, 110], [34, 20, 66], [10, 8, 22],
];

/** RGBA of stable, linear and chaotic tokens. */
const CLASS_COLOURS = [[46, 204, 113, 255], [255, 193, 69, 255], [255, 77, 90, 255]];

export const COMPUTED = '#ff9d5c';
export const PREDICTED = '#1f4f50';
export const FAINT = '#8d97a5';

function ramp(stops, size) {
  return Uint8ClampedArray.from({ length: size * 3 }, (_, i) => {
    const place = (Math.floor(i / 3) / (size - 1)) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    return stops[low][i % 3] + (stops[low + 1][i % 3] - stops[low][i % 3]) * (place - low);
  });
}

export const DEPTH_RAMP = ramp(DEPTH_STOPS, 256);

/** RGBA of a token's class. */
export function classColour(token) {
  return CLASS_COLOURS[token] ?? [0, 0, 0, 0];
}
