// A word-level difference between two replies, on demand. Joined before board.js.
const wordsOf = (text) => text.match(/\s+|[\p{Script=Han}]|[\p{L}\p{N}_']+|[^\s\p{L}\p{N}]/gu) || [];
const MOST_CELLS = 4_000_000;

// Pieces [kind, text] that turn `left` into `right`; kind is 'same', 'del' or 'ins'. Longest common subsequence.
const difference = (left, right) => {
  const a = wordsOf(left);
  const b = wordsOf(right);
  if (a.length * b.length > MOST_CELLS) return [['del', left], ['ins', right]];
  const width = b.length + 1;
  const best = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      best[i * width + j] = a[i] === b[j] ? best[(i + 1) * width + j + 1] + 1
        : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  const pieces = [];
  const add = (kind, text) => {
    if (pieces.length && pieces.at(-1)[0] === kind) pieces.at(-1)[1] += text;
    else pieces.push([kind, text]);
  };
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { add('same', a[i]); i += 1; j += 1; }
    else if (j >= b.length || (i < a.length && best[(i + 1) * width + j] >= best[i * width + j + 1])) { add('del', a[i]); i += 1; }
    else { add('ins', b[j]); j += 1; }
  }
  return pieces;
};

// The panel: two choices of letter and the difference between them. `replies()` gives the replies of now,
// `said()` the id of the chosen one, if any, and the places: the chosen one is compared with what the person made
// of it, or with the best of the others.
const makeCompare = (replies, said) => {
  const ofPerson = (reply) => `${reply.id} edited`;
  const out = h('div', { class: 'difference', dir: 'auto' });
  const picks = ['compare_left', 'compare_right'].map((label) => h('select', { 'aria-label': t(label), onchange: () => draw() }));
  const texts = () => replies().filter((reply) => !isWriting(reply)).flatMap((reply) => [reply,
    ...(reply.edit ? [{ id: ofPerson(reply), text: reply.edit.text, letter: `${reply.letter}: ${t('edited_by_you')}` }] : [])]);
  const draw = () => {
    const [left, right] = picks.map((pick) => texts().find((text) => text.id === pick.value));
    if (!left || !right) return;
    const tag = { same: 'span', del: 'del', ins: 'ins' };
    out.replaceChildren(...difference(left.text, right.text).map(([kind, text]) => h(tag[kind], {}, text)));
  };
  const fill = () => {
    const [chosen, places] = said();
    const finished = replies().filter((reply) => !isWriting(reply));
    const left = finished.find((reply) => reply.id === chosen) ?? finished[0];
    const others = finished.filter((reply) => reply !== left);
    const place = (reply) => places[reply.id] ?? finished.length + 1;
    const right = left?.id === chosen ? others.sort((x, y) => place(x) - place(y))[0] : others[0];
    const shown = [left?.id, left?.edit ? ofPerson(left) : right?.id];
    picks.forEach((pick, index) => {
      pick.replaceChildren(...texts().map((text) => h('option', { value: text.id }, text.letter)));
      if (shown[index]) pick.value = shown[index];
    });
    draw();
  };
  const root = h('section', { class: 'compare', hidden: true, 'aria-label': t('compare') },
    h('div', { class: 'row' }, picks[0], h('span', {}, t('compare_with')), picks[1]), out);
  const toggle = () => {
    root.hidden = !root.hidden;
    if (root.hidden) return false;
    fill();
    night.reveal(root);
    return true;
  };
  return { root, toggle };
};
