// Where a message is written: it grows with its text, keeps a draft for each chat, and turns Send into Stop while
// replies stream. A message is remembered until the server has taken it: none is lost, and none is stored twice.
const { t, h, icon, ANSWER_MS } = night;
const LONGEST = 32000;
const fire = night.patient(trigger, watch, props);
let value = null;
let place = night.address(); // the chat that the text in the box is for: shown, or asked for and not yet shown
let isAnswered = false; // a message has just been taken
let sent = JSON.parse(night.kept('sent') || 'null'); // the message that was sent and is not known to be stored
let waiting = 0; // the timer while its answer is awaited
const area = h('textarea', { rows: 1, dir: 'auto', 'aria-label': t('message'), placeholder: t('write_message'), enterkeyhint: 'send' });
const sendButton = h('button', { type: 'submit', class: 'send', 'aria-label': t('send'), title: t('send') }, icon('send'));
const stopButton = h('button', {
  type: 'button', class: 'send is-stop', 'aria-label': t('stop'), title: t('stop'), hidden: true,
  onclick: () => document.dispatchEvent(new CustomEvent('night:stop')),
}, icon('stop'));
const status = h('span', { class: 'length', role: 'status' });
const unsent = h('p', { class: 'unsent', role: 'status' });
const form = h('form', { class: 'composer', onsubmit: (event) => { event.preventDefault(); send(); } },
  area, h('div', { class: 'composer-row' }, status, h('span', { class: 'push' }), stopButton, sendButton));
element.replaceChildren(unsent, form);
// How much of the view it takes, for what sticks above it.
const frame = element.closest('#composer');
new ResizeObserver(() => document.documentElement.style.setProperty('--composer', `${Math.ceil(frame.getBoundingClientRect().height)}px`))
  .observe(frame);

const grouped = (count) => count.toLocaleString();
const draft = (id) => night.kept(`draft_${id}`);
const keepDraft = (id, text) => night.keep(`draft_${id}`, text);
const write = (text) => { area.value = text; keepDraft(place, text); };
const turn = () => (place === (value?.conversation_id ?? '') ? night.shared.turn : null);
const isBusy = () => !!waiting || !!turn()?.writing;
const isComing = () => !!place && place !== value?.conversation_id;
const isRepeat = () => !!sent && sent.place === place && sent.text === area.value;
const update = () => {
  const over = [...area.value].length - LONGEST;
  const near = over > -LONGEST / 5;
  const isUnsent = isRepeat() && !waiting;
  unsent.textContent = isUnsent ? `${t(sent.isRefused ? 'not_sent' : 'no_answer')} ${sent.reason || ''}` : '';
  unsent.hidden = !isUnsent;
  const of = near ? `${grouped(over + LONGEST)} / ${grouped(LONGEST)}` : '';
  status.textContent = over > 0 ? t('too_long', { over: grouped(over) }) : of;
  status.classList.toggle('is-over', over > 0);
  sendButton.disabled = isBusy() || isComing() || over > 0 || !area.value.trim();
  stopButton.hidden = !isBusy();
  sendButton.hidden = isBusy();
  night.grow(area);
};
const remember = (message) => { sent = message; night.keep('sent', message ? JSON.stringify(message) : ''); };
const send = () => {
  if (sendButton.disabled) return;
  // The same text again has the same key, by which the server knows a message that it has stored.
  remember({ key: isRepeat() ? sent.key : night.key(), text: area.value, place, look: night.look() });
  waiting = setTimeout(giveUp, ANSWER_MS);
  fire('send', {
    look: sent.look, key: sent.key, text: sent.text, conversation_id: place,
    turn_id: turn()?.turn_id || '', chosen: turn()?.chosen || '', ranking: turn()?.ranking() ?? null,
    replies: Number(night.preference('replies')) || value?.default_replies,
    may_train: !night.shared.noTraining,
  });
  update();
};
const stopWaiting = () => { clearTimeout(waiting); waiting = 0; };
const giveUp = () => {
  stopWaiting();
  night.lookBack(sent.look, value?.look ?? 0);
  update();
};
// What was typed after the message went off stays: the next message has begun.
const without = (text) => (text.startsWith(sent.text) ? text.slice(sent.text.length).trimStart() : text);
const answered = (isSent, reason = '') => {
  stopWaiting();
  if (!isSent) {
    remember({ ...sent, isRefused: true, reason });
    night.lookBack(sent.look, value?.look ?? 0);
    return;
  }
  if (sent.place === place) {
    write(without(area.value));
    isAnswered = true;
  } else {
    keepDraft(sent.place, without(draft(sent.place)));
  }
  remember(null);
};
// A new chat has begun, or the one on the page is gone: what is in the box comes along.
const moveTo = (id) => {
  const text = area.value;
  keepDraft(place, '');
  place = id;
  write([text, draft(id)].filter(Boolean).join('\n\n'));
};
const draw = (isLate) => {
  const next = props.value;
  if (next?.answered && !isLate) document.dispatchEvent(new CustomEvent('night:answered', { detail: next }));
  if (next && sent && next.answered === sent.key && !isLate) answered(next.is_sent, next.reason);
  if (!night.isStale(next)) {
    const isHere = place === (value?.conversation_id ?? '');
    value = next;
    // To a chat that was asked for, and may yet come, the text belongs until another is asked for.
    if (place !== value.conversation_id && (isHere || !isLate)) moveTo(value.conversation_id);
  }
  update();
};
area.addEventListener('input', () => { keepDraft(place, area.value); update(); });
area.addEventListener('keydown', (event) => {
  // While a Chinese or Japanese input method is open, Enter chooses a character.
  if (event.key === 'Enter' && !event.shiftKey && !night.isComposing(event)) {
    event.preventDefault();
    send();
  } else if (event.key === 'Escape' && !night.isComposing(event)) {
    event.stopPropagation(); // elsewhere on the page Escape stops the replies
    area.blur();
  }
});
document.addEventListener('night:signed-out', () => {
  if (waiting) answered(false);
  update();
});
document.addEventListener('night:open', (event) => {
  place = event.detail;
  area.value = draft(place);
  update();
});
document.addEventListener('night:turn', () => {
  update();
  // Several replies are coming: the keys now belong to the board, and a phone's keyboard makes room for it;
  // but not while the next message is being typed.
  if (isAnswered && night.shared.turn?.count > 1 && !area.value) area.blur();
  isAnswered = false;
});
document.addEventListener('night:write', (event) => {
  if (event.detail) write(event.detail);
  update();
  area.focus();
});
night.follow(watch, props, draw);
area.value = draft(place);
draw();
if (window.matchMedia('(min-width: 800px)').matches) area.focus();
