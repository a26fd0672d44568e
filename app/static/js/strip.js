/** The strip of decisions: a row per chunk, newest on top; a cell per denoise step, bright where computed. */

import { COMPUTED, FAINT, PREDICTED } from './colours.js';

const ROWS = 24;
const ROW_HEIGHT = 15;
const CELL_HEIGHT = 9;
const COUNT_WIDTH = 46;

export class Strip {
  /** @param {HTMLCanvasElement} canvas as large as its style makes it */
  constructor(canvas) {
    this.canvas = canvas;
    this.rows = [];
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** Chunks of a step, which begin at a frame. */
  add(chunks) {
    for (const { decisions } of chunks) this.rows.unshift(decisions);
    this.rows.length = Math.min(this.rows.length, ROWS);
    this.draw();
  }

  clear() {
    this.rows = [];
    this.draw();
  }

  /** In words, for those who do not see it. */
  get text() {
    const [row] = this.rows;
    if (!row) return 'no chunk yet';
    return `${row.split('F').length - 1} of ${row.length} steps computed: ${row}`;
  }

  draw() {
    const { clientWidth, clientHeight } = this.canvas;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    const context = this.canvas.getContext('2d');
    context.scale(ratio, ratio);
    context.font = '11px ui-monospace, "DejaVu Sans Mono", Menlo, monospace';
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    const shown = Math.floor(clientHeight / ROW_HEIGHT);
    this.rows.slice(0, shown).forEach((row, line) => {
      context.globalAlpha = Math.max(0.25, 1 - (line / shown) * 0.75);
      this.drawRow(context, row, line * ROW_HEIGHT, clientWidth);
    });
    this.canvas.setAttribute('aria-label', `Decisions of the latest chunk: ${this.text}`);
  }

  drawRow(context, row, top, width) {
    const cell = (width - COUNT_WIDTH) / row.length;
    const gap = cell > 4 ? 1 : 0.5;
    [...row].forEach((letter, i) => {
      context.fillStyle = letter === 'F' ? COMPUTED : PREDICTED;
      context.fillRect(i * cell, top + (ROW_HEIGHT - CELL_HEIGHT) / 2, cell - gap, CELL_HEIGHT);
    });
    context.fillStyle = FAINT;
    context.fillText(`${row.split('F').length - 1}/${row.length}`, width, top + ROW_HEIGHT / 2 + 0.5);
  }
}
