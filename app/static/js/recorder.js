/** Records what is shown as a video. */

const HEIGHT = 480;
const TYPES = ['video/webm;codecs=vp9', 'video/webm;codecs=vp8', 'video/webm', 'video/mp4'];
const BITS_PER_SECOND = 4_000_000;
const PATIENCE = 50;
const PATIENCE_MS = 100;

export class Recorder {
  constructor() {
    this.canvas = document.createElement('canvas');
    this.recorder = null;
    this.parts = [];
  }

  static get supported() {
    return typeof MediaRecorder !== 'undefined' && TYPES.some((type) => MediaRecorder.isTypeSupported(type));
  }

  get recording() {
    return this.recorder !== null;
  }

  /** Begin, with pictures side by side as in `canvases`. */
  start(canvases) {
    this.draw(canvases);
    const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    this.parts = [];
    this.recorder = new MediaRecorder(this.canvas.captureStream(30), {
      mimeType, videoBitsPerSecond: BITS_PER_SECOND,
    });
    this.recorder.addEventListener('dataavailable', (event) => this.parts.push(event.data));
    this.recorder.start(1000);
  }

  /** Draw the pictures as they are now, enlarged without blur. */
  draw(canvases) {
    const scale = Math.max(1, Math.floor(HEIGHT / canvases[0].height));
    const widths = canvases.map((canvas) => canvas.width * scale);
    const size = { width: widths.reduce((sum, width) => sum + width, 0), height: canvases[0].height * scale };
    if (this.canvas.width !== size.width || this.canvas.height !== size.height) {
      Object.assign(this.canvas, size);
    }
    const context = this.canvas.getContext('2d');
    context.imageSmoothingEnabled = false;
    let left = 0;
    canvases.forEach((canvas, i) => {
      context.drawImage(canvas, left, 0, widths[i], size.height);
      left += widths[i];
    });
  }

  /** End. Returns the video; null if the browser has not recorded a single frame. */
  async stop(canvases) {
    const { recorder } = this;
    // An encoder that has just begun may hold nothing yet: show it the last frame until it does.
    for (let i = 0; i < PATIENCE && !this.bytes; i += 1) {
      this.draw(canvases);
      recorder.requestData();
      await new Promise((resolve) => setTimeout(resolve, PATIENCE_MS));
    }
    this.recorder = null;
    await new Promise((resolve) => {
      recorder.addEventListener('stop', resolve);
      recorder.stop();
    });
    for (const track of recorder.stream.getTracks()) track.stop();
    return this.bytes ? new Blob(this.parts, { type: recorder.mimeType }) : null;
  }

  get bytes() {
    return this.parts.reduce((sum, part) => sum + part.size, 0);
  }
}
