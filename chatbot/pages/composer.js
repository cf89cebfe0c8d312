// Where a message is written: it grows with its text, keeps a draft, and turns Send into Stop while replies stream.
const { t, h, icon } = night;
const LONGEST = 32000;
const fire = night.patient(trigger, watch);
let value = props.value;
let isAnswered = false; // a message has just been taken
let pending = null; // the key of the message that was sent and not yet acknowledged
const area = h('textarea', { rows: 1, 'aria-label': t('message'), placeholder: t('write_message'), enterkeyhint: 'send' });
const sendButton = h('button', { type: 'submit', class: 'send', 'aria-label': t('send'), title: t('send') }, icon('send'));
const stopButton = h('button', {
  type: 'button', class: 'send is-stop', 'aria-label': t('stop'), title: t('stop'), hidden: true,
  onclick: () => document.dispatchEvent(new CustomEvent('night:stop')),
}, icon('stop'));
const length = h('span', { class: 'length', role: 'status' });
const form = h('form', { class: 'composer', onsubmit: (event) => { event.preventDefault(); send(); } },
  area, h('div', { class: 'composer-row' }, length, h('span', { class: 'push' }), stopButton, sendButton));
element.replaceChildren(form);

const draftName = () => `night_draft_${value?.conversation_id || ''}`;
const draft = (text) => {
  try {
    if (text === undefined) return sessionStorage.getItem(draftName()) || '';
    sessionStorage.setItem(draftName(), text);
  } catch { /* no draft without storage */ }
  return '';
};
const isBusy = () => !!pending || !!night.shared.turn?.writing;
const update = () => {
  const over = [...area.value].length - LONGEST;
  const near = over > -LONGEST / 5;
  length.textContent = over > 0 ? t('too_long', { over }) : (near ? `${over + LONGEST} / ${LONGEST}` : '');
  length.classList.toggle('is-over', over > 0);
  sendButton.disabled = isBusy() || over > 0 || !area.value.trim();
  stopButton.hidden = !isBusy();
  sendButton.hidden = isBusy();
  night.grow(area);
};
const send = () => {
  if (sendButton.disabled) return;
  pending = night.key();
  const turn = night.shared.turn;
  fire('send', {
    look: night.look(), key: pending, text: area.value, conversation_id: value?.conversation_id || '',
    turn_id: turn?.turn_id || '', chosen: turn?.chosen || '', ranking: turn?.ranking() ?? null,
    replies: Number(night.preference('replies')) || value?.default_replies,
    may_train: !night.shared.noTraining,
  });
  update();
};
area.addEventListener('input', () => { draft(area.value); update(); });
area.addEventListener('keydown', (event) => {
  // While a Chinese or Japanese input method is open, Enter chooses a character.
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
    event.preventDefault();
    send();
  } else if (event.key === 'Escape') {
    area.blur();
  }
});
const draw = () => {
  const next = props.value;
  if (!next) return;
  if (pending && next.answered === pending) {
    if (next.is_sent) { area.value = ''; draft(''); isAnswered = true; }
    else night.say(t('not_sent'));
    pending = null;
  }
  if (!night.isStale(next)) {
    const moved = value?.conversation_id !== next.conversation_id;
    value = next;
    if (moved && !area.value) area.value = draft();
  }
  update();
};
document.addEventListener('night:turn', () => {
  update();
  // Several replies are coming: the keys now belong to the board, and a phone's keyboard makes room for it.
  if (isAnswered && night.shared.turn?.count > 1) area.blur();
  isAnswered = false;
});
document.addEventListener('night:write', (event) => {
  if (event.detail) area.value = event.detail;
  update();
  area.focus();
});
watch('value', draw);
draw();
if (window.matchMedia('(min-width: 800px)').matches) area.focus();
