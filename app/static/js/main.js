/** The playground: puts the parts of the page together. */

import { Api } from './api.js';
import { drawBackdrop } from './backdrop.js';
import { rolloutOf } from './clip.js';
import { Controls } from './controls.js';
import { byId, download, make, readable, setText } from './dom.js';
import { Figures } from './figures.js';
import { Game } from './game.js';
import { PolicyPicker, nameOf } from './policies.js';
import { Recorder } from './recorder.js';
import { Stage } from './stage.js';
import { LIVE, createState } from './state.js';
import { Status } from './status.js';

const FIGURES_MS = 250;
const NOTICE_MS = 8000;
const BASELINE = 'none';

const state = createState({
  phase: 'loading', error: null, notice: null, keyError: null, retryAt: null, pausedBy: null,
  models: [], model: null, start: null, comparing: false, recording: false,
  frame: null, skipRatio: null, uncached: null,
});
const api = new Api(sessionStorage);
const stage = new Stage();
const figures = new Figures();
const recorder = new Recorder();
const controls = new Controls(byId('actions'), () => game.acted());
const game = new Game(api, state, controls, stage, {
  model: (model) => picker.model?.id !== model.id && useModel(model),
  moment: (moment) => showMoment(moment),
  cache: (side, cache) => showCache(side, cache),
  cacheFailed: (side, error) => side === slot() && picker.fail(error.param, error.message),
});
const caches = [null, BASELINE];
const picker = new PolicyPicker(byId('policy'), (cache) => chooseCache(cache));
new Status(state, {
  play: () => play(),
  resume: () => game.resume(),
  retry: () => game.retryNow(),
  again: () => (state.values.models.length ? play() : load()),
});

/** The side whose cache is being changed. */
function slot() {
  return state.values.comparing ? Number(document.querySelector('input[name=slot]:checked').value) : 0;
}

function chooseCache(cache) {
  const side = slot();
  caches[side] = cache;
  if (LIVE.has(state.values.phase)) game.setCache(side, cache);
  showCaptions();
}

function showCache(side, cache) {
  caches[side] = cache;
  if (side === slot()) picker.show(cache);
  showCaptions();
}

function showCaptions() {
  const { model, comparing } = state.values;
  if (!model?.presets) return;
  setText(byId('caption-a'), comparing ? nameOf(caches[0], model) : 'Colour');
  setText(byId('caption-b'), nameOf(caches[1], model));
}

async function play() {
  const seed = byId('seed');
  if (!seed.reportValidity()) return;
  byId('stage').focus({ preventScroll: true });
  if (recorder.recording) await toggleRecording();
  await game.start({
    model: byId('model').value, start: byId('start').value, seed: seed.valueAsNumber, cache: caches[0],
  });
}

/** Ask what there is to play. */
async function load() {
  state.set({ phase: 'loading', error: null });
  game.epoch += 1;
  await game.guarded(game.epoch, async () => {
    const models = await game.patiently(game.epoch, () => api.models());
    game.policies = await game.patiently(game.epoch, () => api.policies());
    byId('model').replaceChildren(...models.map(({ id }) => make('option', { value: id }, id)));
    state.set({ models });
    useModel(models[0]);
    state.set({ phase: 'empty' });
    byId('overlay-primary').focus({ preventScroll: true });
  });
  byId('forget-key').hidden = !api.key;
  if (state.values.phase === 'key') byId('key').focus();
}

/** Show what a model offers; one that was never loaded says so later. */
function useModel(model) {
  caches[0] = null;
  state.set({ model });
  byId('start').replaceChildren(...(model.starts ?? []).map((name) => make('option', { value: name }, readable(name))));
  offer(!model.presets || model.starts.length > 0);
  if (!model.presets) return;
  picker.use(model, game.policies);
  picker.show(caches[0]);
  controls.use(model.action_space);
  stage.use(model);
  if (!controls.usable) offer(false);
  else if (!model.starts.length) {
    byId('actions').replaceChildren(make('p', { class: 'note' },
      'This model begins from a picture of yours, which needs a program: use the HTTP interface.'));
  }
}

/** Let sessions be begun, or not. */
function offer(possible) {
  byId('new-session').disabled = !possible;
  byId('overlay-primary').disabled = !possible;
}

function showFigures() {
  const { phase, uncached, model, skipRatio, frame, comparing } = state.values;
  const meter = game.tracks[0]?.meter;
  const known = phase === 'playing' || phase === 'paused' || phase === 'ready' || phase === 'measuring';
  const steps = game.tracks.map((track) => track.steps.at(-1)?.stats);
  // Side by side, the faster one waits for the other: each is as fast as it was computed.
  const [first, second] = comparing ? steps.map((stats) => stats?.frames_per_second ?? null)
    : [meter?.framesPerSecond ?? null, uncached];
  figures.show({
    achieved: known ? first : null, uncached: second, game: model?.fps ?? null,
    skipRatio: frame === null ? null : skipRatio, latency: meter?.latencyMedian ?? null, frame,
  }, comparing ? caches.map((cache) => nameOf(cache, model)) : null);
  steps.forEach((stats, side) => {
    const text = stats && comparing ? `${stats.steps_full} of ${stats.steps_total} steps computed` : '';
    setText(byId(side ? 'figure-b' : 'figure-a'), text);
  });
}

/** A moment was drawn: keep it, and say whether it has classes, which some policies alone know. */
function showMoment(moment) {
  if (recorder.recording) recorder.draw(stage.recorded);
  const box = byId('classes');
  const known = moment.frames.some(({ step }) => step?.maps.length);
  const label = box.closest('label');
  label.dataset.dim = String(!known);
  setText(byId('classes-note'), known ? 'over the frame' : 'this policy has none; worldcache has');
}

async function toggleRecording() {
  if (!recorder.recording) {
    recorder.start(stage.recorded);
    state.set({ recording: true });
    return;
  }
  byId('record').disabled = true;
  const video = await recorder.stop(stage.recorded);
  byId('record').disabled = false;
  state.set({ recording: false });
  if (video) download(video, `worldcache-${fileName()}.${video.type.includes('mp4') ? 'mp4' : 'webm'}`);
  else state.set({ notice: 'the browser has recorded nothing; record for longer' });
  saveActions();
}

function saveActions() {
  const rollout = rolloutOf(game.tracks[0], state.values.start, game.cacheChanges);
  download(new Blob([JSON.stringify(rollout, null, 2)], { type: 'application/json' }), `worldcache-${fileName()}.json`);
}

function fileName() {
  const { session } = game.tracks[0];
  return `${session.model}-${state.values.start}-seed${session.seed}-frame${state.values.frame ?? 0}`;
}

function wire() {
  byId('setup').addEventListener('submit', (event) => {
    event.preventDefault();
    play();
  });
  byId('model').addEventListener('change', (event) => {
    useModel(state.values.models.find(({ id }) => id === event.target.value));
  });
  byId('key-form').addEventListener('submit', async (event) => {
    event.preventDefault();
    api.key = byId('key').value.trim();
    byId('key').value = '';
    await load();
    if (state.values.phase === 'key') {
      api.key = null;
      state.set({ keyError: 'The server does not know this key.' });
    }
  });
  byId('forget-key').addEventListener('click', () => {
    game.epoch += 1;
    game.closeAll();
    api.key = null;
    load();
  });
  byId('pause').addEventListener('click', () => (state.values.phase === 'paused' ? game.resume() : game.pause()));
  byId('rewind').addEventListener('click', () => game.rewind());
  byId('reset').addEventListener('click', () => game.reset());
  byId('record').addEventListener('click', () => toggleRecording());
  byId('save-actions').addEventListener('click', () => saveActions());
  byId('measure').addEventListener('click', () => game.measureAgain());
  byId('speed').addEventListener('change', (event) => game.setSpeed(event.target.value));
  byId('smooth').addEventListener('change', (event) => { game.projector.smooth = event.target.checked; });
  byId('classes').addEventListener('change', (event) => {
    stage.showClasses = event.target.checked;
    stage.redraw();
  });
  byId('compare').addEventListener('change', (event) => {
    if (event.target.checked) game.compare(caches[1]);
    else game.endCompare();
  });
  for (const input of document.querySelectorAll('input[name=slot]')) {
    input.addEventListener('change', () => picker.show(caches[slot()]));
  }
  document.addEventListener('visibilitychange', () => {
    const { phase, pausedBy } = state.values;
    if (document.hidden && (phase === 'playing' || phase === 'ready')) game.pause('hidden');
    else if (!document.hidden && phase === 'paused' && pausedBy === 'hidden') game.resume();
  });
  addEventListener('pagehide', () => game.closeAll());
  giveFocusBack();
}

/** Whoever clicks on a setting plays on: the next key is the world's, unless keys alone are used. */
function giveFocusBack() {
  let pointed = false;
  addEventListener('pointerdown', () => { pointed = true; }, true);
  addEventListener('keydown', () => { pointed = false; }, true);
  const back = ({ target }) => {
    if (pointed && LIVE.has(state.values.phase) && !target.closest('.actions, .parameters')) {
      byId('stage').focus({ preventScroll: true });
    }
  };
  document.addEventListener('change', back);
  document.addEventListener('click', (event) => event.target.closest('button') && back(event));
}

function watch() {
  let noticed;
  state.watch(['phase', 'frame', 'comparing', 'models'], ({ phase, frame, comparing, models }) => {
    byId('new-session').disabled = !models.length || byId('overlay-primary').disabled;
    const live = LIVE.has(phase);
    const still = !live || phase === 'busy' || phase === 'reconnecting';
    controls.enabled = live;
    for (const id of ['pause', 'rewind', 'reset', 'measure', 'compare']) byId(id).disabled = still;
    byId('save-actions').disabled = !live || frame === null;
    byId('record').disabled = !recorder.recording && (!live || frame === null || !Recorder.supported);
    byId('speed').disabled = phase === 'busy' || phase === 'reconnecting';
    setText(byId('pause'), phase === 'paused' ? 'Resume' : 'Pause');
    byId('compare').checked = comparing;
  });
  state.watch(['comparing'], () => {
    if (state.values.comparing) document.querySelector('input[name=slot][value="1"]').checked = true;
    if (picker.model) picker.show(caches[slot()]);
    showCaptions();
  });
  state.watch(['recording'], ({ recording }) => {
    setText(byId('record'), recording ? 'Stop and save' : 'Record');
    byId('record').setAttribute('aria-pressed', String(recording));
  });
  state.watch(['notice'], ({ notice }) => {
    clearTimeout(noticed);
    if (notice) noticed = setTimeout(() => state.set({ notice: null }), NOTICE_MS);
  });
  setInterval(showFigures, FIGURES_MS);
}

wire();
watch();
drawBackdrop(byId('backdrop'));
await load();
