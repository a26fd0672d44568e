/** Small helpers for the document. */

/** The element with this id; an error if the page has none. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element #${id}`);
  return element;
}

/**
 * A new element.
 * @param {string} tag
 * @param {object} properties set on the element; `class`, `data-*`, `aria-*`, `role` and `for` as attributes
 * @param {...(Node|string)} children
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === 'class' || name === 'for' || name === 'role' || name.includes('-')) {
      element.setAttribute(name, value);
    } else {
      element[name] = value;
    }
  }
  element.append(...children);
  return element;
}

/** Set text only where it changes, so that screen readers hear nothing twice. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Offer bytes as a file. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = make('a', { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Text of a name such as MOVE_LEFT: "Move left". */
export function readable(name) {
  const words = String(name).replaceAll('_', ' ').toLowerCase();
  return words.charAt(0).toUpperCase() + words.slice(1);
}
