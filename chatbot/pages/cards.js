// One card of the board: a reply, its state, its rank, and what can be done with it. Joined before board.js.
const { t, h, put, icon, iconButton } = night;
const CHIPS_UP_TO = 6;

const rankChips = (reply, count, setPlace) => {
  const chips = Array.from({ length: count }, (_, index) => {
    const input = h('input', {
      type: 'radio', name: `rank-${reply.id}`, value: index + 1,
      'aria-label': t('reply_rank', { letter: reply.letter, rank: index + 1 }),
      onchange: () => setPlace(reply.id, index + 1),
    });
    // A chip that is chosen already is taken back by a second click.
    input.addEventListener('click', () => {
      if (input.dataset.was === 'chosen') setPlace(reply.id, 0);
    });
    return h('label', { class: 'chip', onpointerdown: () => { input.dataset.was = input.checked ? 'chosen' : ''; } },
      input, h('span', {}, String(index + 1)));
  });
  return h('fieldset', { class: 'ranks' },
    h('legend', { class: 'unseen' }, t('reply_ranks', { letter: reply.letter })), chips);
};

const rankSelect = (reply, count, setPlace) => {
  const options = Array.from({ length: count }, (_, index) => h('option', { value: index + 1 }, String(index + 1)));
  return h('select', {
    class: 'rank-select', 'aria-label': t('reply_ranks', { letter: reply.letter }),
    onchange: (event) => setPlace(reply.id, Number(event.target.value)),
  }, h('option', { value: 0 }, t('no_rank')), options);
};

const closeEditor = (part) => {
  const hasFocus = part.editor.contains(document.activeElement);
  part.editor.replaceChildren();
  if (hasFocus) part.root.focus();
};
// The text box in which a person writes the reply they would have wanted; `updateCard` closes it once that is stored.
const openEditor = (part, reply, save) => {
  if (part.editor.firstChild) return;
  part.editor.replaceChildren(...night.editor({
    id: reply.id, text: reply.edit ? reply.edit.text : reply.text, label: t('your_version', { letter: reply.letter }),
    verb: 'save_demonstration', save: ({ text }) => { part.root.focus(); save(text); }, close: () => closeEditor(part),
  }));
};

// The card's elements by name; `update` fills them from a reply and from the board's state.
const makeCard = (reply, count, does) => {
  const { letter } = reply;
  const many = count > 1;
  const part = {
    body: h('div', { class: 'written' }),
    edit: h('div', { class: 'written' }),
    state: h('span', { class: 'state' }),
    version: h('span', { class: 'version' }),
    here: h('span', { class: 'here' }, t('continues')),
    editor: h('div', { class: 'editor' }),
  };
  part.edited = h('section', { class: 'edited', hidden: true }, h('h4', {}, t('edited_by_you')), part.edit);
  part.stop = iconButton('stop', many ? t('stop_reply', { letter }) : t('stop'), () => does.stop(reply.id));
  part.copy = iconButton('copy', many ? t('copy_reply', { letter }) : t('copy'), () => does.copy(reply.id, part.copy));
  part.change = iconButton('edit', many ? t('edit_reply', { letter }) : t('edit'), () => {
    does.edit(reply.id);
    part.editor.querySelector('textarea').focus();
  });
  part.next = iconButton('next', t('continue_from', { letter }), () => does.next(reply.id), { 'aria-pressed': 'false' });
  part.bad = iconButton('bad', t('bad_reply'), () => does.dislike(), { 'aria-pressed': 'false' });
  const tools = h('div', { class: 'tools' }, part.stop, part.copy, part.change, many ? part.next : part.bad);
  const foot = h('div', { class: 'card-foot' });
  if (many) {
    part.ranks = (count > CHIPS_UP_TO ? rankSelect : rankChips)(reply, count, does.place);
    part.best = h('button', {
      type: 'button', class: 'best', 'aria-pressed': 'false',
      'aria-label': t('best_reply', { letter }), onclick: () => does.best(reply.id),
    }, icon('star'), t('best'));
    foot.append(part.ranks, part.best);
  }
  part.root = h('article', {
    class: 'card', role: 'listitem', tabindex: '-1', 'aria-label': many ? t('reply', { letter }) : t('assistant'),
    onfocusin: () => does.select(reply.id, false),
  },
    h('header', {}, many ? h('span', { class: 'letter' }, letter) : null, part.state, part.version, part.here, tools),
    part.body, part.edited, part.editor, many ? foot : null);
  return part;
};

// What the header says of a reply besides its text. One that ended well says nothing, unless nothing was written.
const stateOf = (reply) => {
  if (reply.state !== 'stop') return t(`state_${reply.state}`);
  return reply.text.trim() ? '' : t('state_empty');
};
const isWriting = (reply) => reply.state === 'writing' || reply.state === 'waiting';

const updateCard = (part, reply, seen) => {
  const writing = isWriting(reply);
  put(part.body, reply.blocks);
  put(part.edit, reply.edit ? reply.edit.blocks : []);
  part.edited.hidden = !reply.edit;
  part.state.textContent = stateOf(reply);
  part.state.dataset.state = reply.state;
  part.version.textContent = reply.version || '';
  part.here.hidden = !seen.isNext;
  part.stop.hidden = !writing;
  part.copy.hidden = part.change.hidden = part.next.hidden = part.bad.hidden = writing;
  part.next.setAttribute('aria-pressed', String(seen.isChosen));
  part.bad.setAttribute('aria-pressed', String(seen.isBad));
  part.root.setAttribute('aria-busy', String(writing));
  part.root.classList.toggle('is-selected', seen.isSelected);
  part.root.classList.toggle('is-next', seen.isNext);
  part.root.classList.toggle('is-writing', writing);
  if (reply.edit && reply.edit.text === night.draft(reply.id)?.text) {
    night.settle(reply.id);
    closeEditor(part);
  }
  if (!part.ranks) return;
  part.best.disabled = writing;
  part.best.setAttribute('aria-pressed', String(seen.isBest));
  if (part.ranks.tagName === 'SELECT') {
    part.ranks.value = String(seen.place);
    part.ranks.disabled = writing;
    return;
  }
  part.ranks.disabled = writing;
  part.ranks.querySelectorAll('input').forEach((input) => { input.checked = Number(input.value) === seen.place; });
};
