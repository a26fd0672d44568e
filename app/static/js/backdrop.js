/** Behind the invitation: what the strip of decisions looks like. */

import { COMPUTED, PREDICTED } from './colours.js';

const CELL = { width: 12, height: 18, gap: 3 };
const COMPUTED_SHARE = 0.14;

/** A number in [0, 1) for a place, always the same. */
function scatter(column, row) {
  const value = Math.sin(column * 12.9898 + row * 78.233) * 43758.5453;
  return value - Math.floor(value);
}

/** Fill a canvas with cells, few of them bright; again whenever its size changes. */
export function drawBackdrop(canvas) {
  const draw = () => {
    const { clientWidth, clientHeight } = canvas;
    Object.assign(canvas, { width: clientWidth, height: clientHeight });
    const context = canvas.getContext('2d');
    for (let row = 0; row * (CELL.height + CELL.gap) < clientHeight; row += 1) {
      for (let column = 0; column * (CELL.width + CELL.gap) < clientWidth; column += 1) {
        context.fillStyle = scatter(column, row) < COMPUTED_SHARE ? COMPUTED : PREDICTED;
        context.fillRect(column * (CELL.width + CELL.gap), row * (CELL.height + CELL.gap), CELL.width, CELL.height);
      }
    }
  };
  new ResizeObserver(draw).observe(canvas);
}
