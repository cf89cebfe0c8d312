// The keys of the board, and the list of them. Joined before board.js, whose parts they move.
// Each with its word. The others are of one character, which a slip or speech input presses unmeant: these act only
// where the person has not turned them off.
const KEYS = [['A – I', 'card'], ['1 – 9', 'rank'], ['0', 'clear'], ['Enter', 'best'], ['X', 'bad'], ['S', 'skip'],
  ['Ctrl Enter', 'save'], ['Esc', 'stop'], ['/', 'write']];
const NAMED = /^(Enter|Ctrl Enter|Esc)$/;

const keyHelp = () => {
  const rows = h('dl', {});
  const show = () => rows.replaceChildren(...KEYS.filter(([key]) => NAMED.test(key) || night.hasShortcuts())
    .flatMap(([key, name]) => [h('dt', {}, h('kbd', {}, key)), h('dd', {}, t(`keys_${name}`))]));
  return h('details', { class: 'keys', ontoggle: show }, h('summary', {}, icon('keys'), t('keys')), rows);
};

const pressed = (event) => {
  const key = event.key.toUpperCase();
  const many = replies().length > 1;
  const selected = many && mine.selected && find(mine.selected) ? mine.selected : '';
  const letter = many && replies().find((reply) => reply.letter === key);
  const isRank = /^[0-9]$/.test(key) && Number(key) <= replies().length;
  const at = document.activeElement;
  const isFree = at === document.body || root.contains(at); // elsewhere Enter and digits are of what stands there
  const isBest = key === 'ENTER' && isFree && !/^(BUTTON|A|SUMMARY)$/.test(at.tagName);
  if (key.length === 1 && !night.hasShortcuts()) return;
  if (letter) does.select(letter.id, true);
  else if (many && (isRank || isBest) && !selected && isFree && night.hasShortcuts()) does.askWhich();
  else if (isRank && selected) does.place(selected, Number(key));
  else if (isBest && selected) does.best(selected);
  else if (key === 'X' && many && !foot.bad.disabled) does.allBad();
  else if (key === 'X' && !many && !event.repeat && finished().length) does.dislike();
  else if (key === 'S' && !foot.skip.hidden) does.skip();
  else if (key === '/') document.dispatchEvent(new CustomEvent('night:write'));
  else return;
  event.preventDefault();
};
document.addEventListener('keydown', (event) => {
  if (!value?.turn_id || root.hidden || document.querySelector('dialog[open]')) return;
  const inComment = document.activeElement === foot.comment;
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && (!night.isTyping() || inComment)) {
    event.preventDefault();
    does.save();
  } else if (event.key === 'Escape' && !night.isTyping() && replies().some(isWriting)) {
    does.stopAll();
  } else if (!night.isTyping() && !event.ctrlKey && !event.metaKey && !event.altKey) {
    pressed(event);
  }
});
