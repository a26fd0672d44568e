/** A session's WebSocket, which comes back by itself. */

import { ApiError } from './api.js';

const FIRST_DELAY_MS = 400;
const LONGEST_DELAY_MS = 8000;
const TAKEN_OVER = 4409;
const CLOSED = 4410;

/**
 * Handlers:
 * - `message(json, bytes)`: what the server said; `bytes` is the picture of a frame, else null
 * - `lost(delayMs)`: the connection is gone, and is tried again after so long
 * - `ended(reason, error)`: for good: `expired`, `taken`, `key` or `failed`
 */
export class Connection {
  constructor(api, session, mode, handlers) {
    this.api = api;
    this.session = session;
    this.mode = mode;
    this.handlers = handlers;
    this.socket = null;
    this.header = null;
    this.attempts = 0;
    this.timer = null;
    this.done = false;
    this.retryNow = () => this.timer !== null && this.retry();
    addEventListener('online', this.retryNow);
    this.connect();
  }

  get open() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  /** Say something; false if nobody is listening. */
  send(message) {
    if (!this.open) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** End it; nothing is heard from it any more. */
  close() {
    this.done = true;
    clearTimeout(this.timer);
    removeEventListener('online', this.retryNow);
    this.socket?.close(1000);
  }

  connect() {
    this.timer = null;
    const url = new URL(this.session.websocket, location.href);
    url.protocol = url.protocol.replace('http', 'ws');
    url.searchParams.set('mode', this.mode);
    url.searchParams.set('details', 'true');
    const socket = new WebSocket(url, this.api.protocols);
    socket.binaryType = 'arraybuffer';
    this.socket = socket;
    this.header = null;
    socket.addEventListener('message', (event) => this.socket === socket && this.heard(event.data));
    socket.addEventListener('close', (event) => this.socket === socket && this.lost(event.code));
  }

  heard(data) {
    if (this.done) return;
    if (typeof data !== 'string') {
      const header = this.header;
      this.header = null;
      if (header) this.handlers.message(header, data);
      return;
    }
    const message = JSON.parse(data);
    if (message.type === 'ready') this.attempts = 0;
    if (message.type === 'frame') this.header = message;
    else this.handlers.message(message, null);
  }

  lost(code) {
    if (this.done) return;
    if (code === TAKEN_OVER || code === CLOSED) {
      this.end(code === CLOSED ? 'expired' : 'taken', null);
      return;
    }
    const delay = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.attempts) * (0.75 + Math.random() / 2);
    this.attempts += 1;
    this.handlers.lost(delay);
    this.timer = setTimeout(() => this.retry(), delay);
  }

  /** Ask over HTTP first: a socket that is refused does not say why. */
  async retry() {
    clearTimeout(this.timer);
    this.timer = null;
    try {
      await this.api.session(this.session.id);
    } catch (error) {
      if (this.done) return;
      if (!(error instanceof ApiError)) throw error;
      if (error.gone) this.end('expired', error);
      else if (error.status === 401) this.end('key', error);
      else if (error.status && !error.busy && error.status < 500) this.end('failed', error);
      else this.lost(0);
      return;
    }
    if (!this.done) this.connect();
  }

  end(reason, error) {
    this.close();
    this.handlers.ended(reason, error);
  }
}
