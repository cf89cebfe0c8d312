// The conversation above the board: every settled turn, and the message that is being answered now.
const { t, h, put, iconButton } = night;
const fire = night.patient(trigger, watch, props);
let value = null;
const title = h('h1', { class: 'title', dir: 'auto' });
const menu = iconButton('panel', t('menu'), () => document.dispatchEvent(new CustomEvent('night:sidebar')));
const fresh = iconButton('plus', t('new_chat'), () => document.dispatchEvent(new CustomEvent('night:new')));
const bar = h('header', { class: 'top-bar' }, menu, title, fresh);
const hello = h('section', { class: 'hello' }, night.mark(), h('h2', {}, t('hello')), h('p', {}, t('hello_more')),
  h('div', { class: 'tries' }, ['try_1', 'try_2', 'try_3'].map((key) => h('button', {
    type: 'button', class: 'try',
    onclick: () => document.dispatchEvent(new CustomEvent('night:write', { detail: t(key) })),
  }, t(key)))));
const log = h('div', { class: 'log', role: 'log', 'aria-label': t('conversation') });
const latest = h('button', { type: 'button', class: 'quiet latest', onclick: () => ask('open_chat') }, t('to_latest'));
element.replaceChildren(bar, hello, log, latest);

const look = () => night.look(() => value?.look ?? 0);
const ask = (event, more = {}) => fire(event, {
  look: look(), conversation_id: value.conversation_id,
  replies: Number(night.preference('replies')) || value.default_replies, ...more,
});

let branched = null; // the turn whose rewording went off last
document.addEventListener('night:answered', ({ detail }) => {
  if (detail.is_sent && branched && night.draft(branched)?.key === detail.answered) night.settle(branched);
});
// The text box in place of a message that is being reworded.
const editing = (turn, node) => {
  const box = h('div', { class: 'editor' }, night.editor({
    id: turn.turn_id, text: turn.text, label: t('edit_message'), verb: 'send_edited',
    save: (wording) => {
      branched = turn.turn_id;
      const left = night.shared.turn;
      ask('branch', { turn_id: branched, ...wording, ranked: left?.turn_id || '', ranking: left?.ranking() ?? null });
    },
    close: () => box.replaceWith(node),
  }));
  return box;
};

// Where the chat goes on in more than one way from the same place: which of them this is, and the way to the others.
let entered = null; // the branch that was asked for here, so that its button has the focus again
const fork = (turn) => {
  const at = turn.branches.indexOf(turn.turn_id);
  const count = turn.branches.length;
  const way = (name, to) => iconButton(name, t(`branch_${name}`), () => {
    entered = { turn_id: to, name };
    ask('switch_branch', { turn_id: to });
  }, { 'data-way': name, disabled: !to });
  return h('div', { class: 'fork', role: 'group', 'aria-label': t('branch_of', { at: at + 1, count }) },
    way('before', turn.branches[at - 1]), h('span', { 'aria-hidden': 'true' }, `${at + 1}/${count}`), way('after', turn.branches[at + 1]));
};
const enteredFork = () => {
  const buttons = entered ? [...log.querySelectorAll(`[data-turn="${entered.turn_id}"] .fork button:enabled`)] : [];
  return buttons.find((button) => button.dataset.way === entered.name) ?? buttons[0];
};

const said = (turn) => {
  const copy = iconButton('copy', t('copy'), () => night.copy(turn.text, copy));
  const node = h('div', { class: 'said', 'data-turn': turn.turn_id }, h('span', { class: 'unseen' }, `${t('you')}: `),
    h('div', { class: 'bubble', dir: 'auto' }, turn.text),
    h('div', { class: 'tools' }, copy, iconButton('edit', t('edit_message'), () => {
      const box = editing(turn, node);
      node.replaceWith(box);
      box.querySelector('textarea').focus();
    }), turn.branches.length > 1 && fork(turn)));
  return night.draft(turn.turn_id) ? editing(turn, node) : node;
};

const answered = (turn) => {
  const body = h('div', { class: 'written' });
  put(body, turn.reply.blocks);
  const copy = iconButton('copy', t('copy'), () => night.copy(turn.reply.text, copy));
  return h('div', { class: 'answered' }, h('span', { class: 'unseen' }, `${t('assistant')}: `), body,
    h('div', { class: 'tools' }, copy,
      iconButton('rank', t('rank_again'), () => ask('revisit', { turn_id: turn.turn_id })),
      turn.reply.is_edited && h('span', { class: 'tag' }, t('edited_by_you')),
      turn.vote && h('span', { class: 'tag' }, t(turn.vote.word, turn.vote)),
      turn.reply.version && h('span', { class: 'version' }, turn.reply.version)));
};

// The elements of each turn that is shown, and what they were made of: those that say the same stay, since a screen
// reader reads out whatever enters the log. A message that is being reworded is drawn anew, with its wording.
let drawn = new Map();
const elements = (turn) => {
  const { reply, vote, ...asked } = turn;
  const before = drawn.get(turn.turn_id);
  const draft = night.draft(turn.turn_id);
  const made = { asked: JSON.stringify([asked, draft]), answer: JSON.stringify([reply, vote]) };
  made.said = before?.asked === made.asked && !draft ? before.said : said(turn);
  made.answered = before?.answer === made.answer ? before.answered : reply && answered(turn);
  return made;
};
const drawTurns = () => {
  drawn = new Map(value.turns.map((turn) => [turn.turn_id, elements(turn)]));
  const wanted = [...drawn.values()].flatMap((made) => [made.said, made.answered]).filter(Boolean);
  [...log.children].filter((node) => !wanted.includes(node)).forEach((node) => node.remove());
  wanted.forEach((node, index) => { if (log.children[index] !== node) log.insertBefore(node, log.children[index] ?? null); });
};

const showTitle = () => {
  title.textContent = value.title || t('new_chat');
  document.title = value.title ? `${value.title} · ${t('app')}` : t('app');
};
document.addEventListener('night:named', ({ detail }) => {
  if (detail.id !== value?.conversation_id) return;
  value = { ...value, title: detail.title };
  showTitle();
});
const draw = () => {
  if (night.isStale(props.value)) return;
  const isLed = night.address() !== (value?.conversation_id || ''); // by Back or a link, perhaps to a chat that is gone
  const before = value?.turns.at(-1)?.turn_id;
  value = props.value;
  showTitle();
  hello.hidden = value.turns.length > 0;
  document.body.classList.toggle('is-new', value.turns.length === 0);
  latest.hidden = value.is_latest;
  drawTurns();
  const url = new URL(location);
  if (value.conversation_id) url.searchParams.set('c', value.conversation_id); else url.searchParams.delete('c');
  if (url.href !== location.href) history[isLed ? 'replaceState' : 'pushState'](null, '', url);
  const button = enteredFork();
  entered = null;
  button?.focus({ preventScroll: true });
  // Where the turn is the one that was shown, the page stays where the person reads; to new replies the board leads.
  const isSame = !!before && before === value.turns.at(-1)?.turn_id;
  const here = button ? button.closest('.said') : (!isSame && log.lastElementChild);
  if (here) requestAnimationFrame(() => here.scrollIntoView({ block: 'start', behavior: 'instant' }));
};
window.addEventListener('popstate', () => {
  const id = night.address();
  if (id !== value.conversation_id) document.dispatchEvent(new CustomEvent('night:open', { detail: id }));
});
document.addEventListener('night:open', (event) => fire('open_chat', {
  look: look(), conversation_id: event.detail, pending: JSON.parse(night.kept('sent') || 'null')?.key || '',
}));
document.addEventListener('night:nudge', () => trigger('nudge'));
night.follow(watch, props, draw);
if (props.value) draw();
