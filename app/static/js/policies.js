/** The cache: presets, or a policy with its parameters as its JSON schema describes them. */

import { make, readable, setText } from './dom.js';

const PRESET_NAMES = { none: 'Uncached' };
const ORDER = ['none', 'quality', 'balanced', 'fast', 'auto'];

/** "forecast · 7 of 50 steps", as far as it is known. */
function describePreset(model, name) {
  const preset = model.presets[name === 'auto' ? model.auto_preset : name];
  if (!preset) return '';
  const budget = preset.full_steps && preset.policy !== 'none';
  if (budget) return `${preset.policy} · ${preset.full_steps} of ${model.num_inference_steps} steps`;
  return preset.policy === 'none' ? `all ${model.num_inference_steps} steps` : preset.policy;
}

/** A name of a cache, as it is sent. */
export function nameOf(cache, model) {
  if (cache === null) return nameOf(model.default_preset, model);
  if (typeof cache === 'string') return readable(PRESET_NAMES[cache] ?? cache);
  return cache.policy;
}

/** What a parameter may be: the part of its schema that is not null. */
function kindOf(schema) {
  const options = schema.anyOf ?? [schema];
  return { ...options.find((one) => one.type !== 'null'), optional: options.some((one) => one.type === 'null') };
}

export class PolicyPicker {
  /**
   * @param {HTMLElement} root
   * @param {(cache: string|object) => void} choose
   */
  constructor(root, choose) {
    this.root = root;
    this.choose = choose;
    this.model = null;
    this.policies = [];
    this.fields = new Map();
  }

  use(model, policies) {
    this.model = model;
    this.policies = policies;
    const offered = [...Object.keys(model.presets), 'auto'];
    const names = [...ORDER.filter((name) => offered.includes(name)), ...offered.filter((name) => !ORDER.includes(name))];
    this.presets = make('div', { class: 'presets', role: 'radiogroup', 'aria-label': 'Presets' });
    for (const name of names) {
      const input = make('input', { type: 'radio', name: 'preset', value: name });
      input.addEventListener('change', () => this.choosePreset(name));
      this.presets.append(make('label', { class: 'preset' }, input,
        make('span', {}, readable(PRESET_NAMES[name] ?? name), make('small', {}, describePreset(model, name)))));
    }
    this.select = make('select', { id: 'policy-name' }, make('option', { value: '' }, 'a preset'),
      ...policies.map(({ name }) => make('option', { value: name }, name)));
    this.select.addEventListener('change', () => this.choosePolicy());
    this.about = make('p', { class: 'about' });
    this.error = make('p', { class: 'field-error', role: 'alert' });
    this.form = make('div', { class: 'parameters' });
    this.root.replaceChildren(this.presets,
      make('label', { class: 'row', for: 'policy-name' }, 'Or a policy', this.select), this.about, this.error, this.form);
  }

  /** Show what a session uses. */
  show(cache) {
    const chosen = cache ?? this.model.default_preset;
    this.clearErrors();
    for (const input of this.presets.querySelectorAll('input')) input.checked = input.value === chosen;
    const policy = typeof chosen === 'string' ? '' : chosen.policy;
    if (this.select.value !== policy || !policy) {
      this.select.value = policy;
      this.makeFields(policy ? chosen : null);
    }
  }

  choosePreset(name) {
    this.show(name);
    this.choose(name);
  }

  choosePolicy() {
    const name = this.select.value;
    this.clearErrors();
    if (!name) {
      this.choosePreset(this.model.default_preset);
      return;
    }
    for (const input of this.presets.querySelectorAll('input')) input.checked = false;
    this.makeFields({ policy: name });
    this.choose({ policy: name });
  }

  makeFields(cache) {
    this.fields.clear();
    const policy = this.policies.find(({ name }) => name === cache?.policy);
    setText(this.about, policy ? policy.description : '');
    const properties = Object.entries(policy?.parameters.properties ?? {});
    this.form.replaceChildren(...properties.map(([name, schema]) => this.makeField(name, schema, cache[name])));
  }

  makeField(name, schema, given) {
    const kind = kindOf(schema);
    const value = given ?? schema.default;
    const id = `parameter-${name}`;
    const input = makeInput(kind, value);
    const error = make('p', { class: 'field-error', id: `${id}-error`, role: 'alert' });
    input.id = id;
    input.setAttribute('aria-describedby', `${id}-error`);
    input.addEventListener('change', () => this.changed());
    this.fields.set(name, { input, error, kind, initial: schema.default });
    const title = make('span', { title: schema.description ?? '' }, name);
    return make('div', { class: `parameter ${kind.type}` }, make('label', { for: id }, title, input), error);
  }

  changed() {
    this.clearErrors();
    const cache = { policy: this.select.value };
    let valid = true;
    for (const [name, { input, kind, initial }] of this.fields) {
      const { value, problem } = readInput(input, kind);
      if (problem) {
        this.fail(`cache.${name}`, problem);
        valid = false;
      } else if (value !== undefined && value !== initial) {
        cache[name] = value;
      }
    }
    if (valid) this.choose(cache);
  }

  /** Say what is wrong, at the field that it is about. */
  fail(param, message) {
    const name = (param ?? '').split('.')[1];
    const field = this.fields.get(name);
    const text = message.replace(/^policy '[^']*', parameter '[^']*': /, '');
    setText(field?.error ?? this.error, text);
    field?.input.setAttribute('aria-invalid', 'true');
  }

  clearErrors() {
    setText(this.error, '');
    for (const { input, error } of this.fields.values()) {
      setText(error, '');
      input.removeAttribute('aria-invalid');
    }
  }
}

function makeInput(kind, value) {
  if (kind.enum) {
    const select = make('select', {}, ...kind.enum.map((one) => make('option', { value: one }, one)));
    select.value = value;
    return select;
  }
  if (kind.type === 'boolean') return make('input', { type: 'checkbox', checked: Boolean(value) });
  if (kind.type === 'array') {
    return make('input', { type: 'text', value: value?.join(', ') ?? '', placeholder: 'from the calibration' });
  }
  return make('input', {
    type: 'number', step: kind.type === 'integer' ? 1 : 'any', min: kind.minimum ?? kind.exclusiveMinimum ?? '',
    max: kind.maximum ?? '', value: value ?? '', placeholder: kind.optional ? 'not set' : '',
    inputMode: 'decimal',
  });
}

function readInput(input, kind) {
  if (kind.enum) return { value: input.value };
  if (kind.type === 'boolean') return { value: input.checked };
  if (kind.type === 'array') {
    const numbers = input.value.split(',').map((part) => part.trim()).filter(Boolean).map(Number);
    if (numbers.some(Number.isNaN)) return { problem: 'give numbers, separated by commas' };
    return { value: numbers.length ? numbers : undefined };
  }
  if (!input.validity.valid) return { problem: input.validationMessage };
  if (input.value === '') return kind.optional ? { value: undefined } : { problem: 'give a number' };
  return { value: input.valueAsNumber };
}
