// The sidebar: conversations, settings, the version that answers, and who is signed in.
const { t, h, icon, iconButton } = night;
const fire = night.patient(trigger, watch, props);
let value = null;
let searching = 0;
const wide = window.matchMedia('(min-width: 900px)');
const ask = (event, more = {}) => fire(event, {
  look: value?.look ?? 0, conversation_id: value?.conversation_id ?? '', search: search.value, ...more,
});
const show = (open) => {
  document.body.classList.toggle('sidebar-open', open);
  panel.inert = !open;
  if (wide.matches) night.prefer('sidebar', open ? 'open' : 'closed');
};
const isOpen = () => document.body.classList.contains('sidebar-open');
const closeOnPhone = () => { if (!wide.matches) show(false); };
const openChat = (id) => { document.dispatchEvent(new CustomEvent('night:open', { detail: id })); closeOnPhone(); };

const search = h('input', { type: 'search', class: 'search', dir: 'auto', 'aria-label': t('search'), placeholder: t('search'), maxlength: 200 });
search.addEventListener('input', () => {
  clearTimeout(searching);
  searching = setTimeout(() => ask('search_chats'), 250);
});
const chats = h('ul', { class: 'chats', 'aria-label': t('conversations') });
const version = h('section', { class: 'talking-to' });
const who = h('div', { class: 'who' });

const renameChat = (chat, row) => {
  const input = h('input', { class: 'search', dir: 'auto', value: chat.title, 'aria-label': t('rename'), maxlength: 120 });
  let isOver = false;
  // Whoever goes elsewhere keeps the new name as with Enter; only Escape leaves the old one.
  const done = (isKept) => {
    if (isOver) return;
    isOver = true; // what leaves the page loses the focus, which is no second answer
    if (isKept && input.value.trim() && input.value !== chat.title) ask('rename_chat', { target: chat.id, title: input.value });
    if (input.isConnected) row.replaceChildren(...chatRow(chat));
  };
  const close = (isKept) => { done(isKept); row.querySelector('summary').focus(); };
  input.addEventListener('keydown', (event) => {
    if (night.isComposing(event)) return;
    if (event.key === 'Enter' && input.value.trim()) {
      event.preventDefault(); // it would open the menu, which has the focus then
      close(true);
    } else if (event.key === 'Escape') {
      event.stopPropagation(); // elsewhere on the page Escape stops the replies
      close(false);
    }
  });
  input.addEventListener('blur', () => done(true));
  row.replaceChildren(input);
  input.focus();
  input.select();
};
const chatRow = (chat) => {
  const row = () => details.parentElement;
  const remove = h('button', {
    type: 'button', class: 'menu-item is-bad',
    onclick: () => {
      if (remove.dataset.sure) {
        const at = { look: night.look(() => value.look), turn_id: night.shared.turn?.turn_id ?? '' };
        ask('delete_chat', { ...at, target: chat.id });
      }
      remove.dataset.sure = 'yes';
      remove.textContent = t('delete_sure');
    },
  }, t('delete'));
  const item = (key, action) => h('button', { type: 'button', class: 'menu-item', onclick: () => { details.open = false; action(); } }, t(key));
  const details = h('details', { class: 'menu' },
    h('summary', { class: 'icon-button', 'aria-label': t('actions', { title: chat.title }) }, icon('more')),
    h('div', { class: 'menu-items' }, item('rename', () => renameChat(chat, row())),
      item('export', () => ask('export_chat', { target: chat.id })), remove));
  // A menu that is opened again asks anew before it deletes.
  details.addEventListener('toggle', () => { delete remove.dataset.sure; remove.textContent = t('delete'); });
  details.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || !details.open) return;
    event.stopPropagation(); // elsewhere on the page Escape stops the replies
    details.open = false;
    details.firstElementChild.focus();
  });
  return [h('button', {
    type: 'button', class: 'chat-title', dir: 'auto', title: chat.title, 'aria-current': chat.id === value.conversation_id ? 'page' : null,
    onclick: () => openChat(chat.id),
  }, chat.title), details];
};

const picker = (key, options, chosen, onchange) => {
  const select = h('select', { 'aria-label': t(key), onchange: () => onchange(select.value) },
    options.map(([name, label]) => h('option', { value: name }, label)));
  select.value = chosen;
  return h('label', { class: 'setting' }, h('span', {}, t(key)), select);
};
const replies = picker('replies_per_turn', Array.from({ length: 9 }, (_, i) => [String(i + 1), String(i + 1)]), '',
  (count) => night.prefer('replies', count));
const language = picker('language', Object.entries(window.nightLanguages), night.language, (name) => {
  night.prefer('language', name);
  location.reload();
});
const theme = picker('theme', ['system', 'light', 'dark'].map((name) => [name, t(`theme_${name}`)]),
  night.preference('theme') || 'system', (name) => { night.prefer('theme', name); night.showTheme(); });
// Of a new chat only the page knows whether nights may learn from it. Its switch is kept as its draft is, and no
// answer of the server moves it. `place` is the chat that the switch is for: shown, or asked for and not yet shown.
let place = night.address();
let here = place; // the chat that is shown
const forbid = (isForbidden) => {
  training.checked = isForbidden;
  night.shared.noTraining = isForbidden;
  if (!place) night.keep('no_training', isForbidden ? 'yes' : '');
};
const wasForbidden = () => night.kept('no_training') === 'yes';
const training = h('input', {
  type: 'checkbox', role: 'switch',
  onchange: () => {
    forbid(training.checked);
    if (place) ask('set_training', { conversation_id: place, may_train: !training.checked });
  },
});
// The page shows this chat. Nobody may have asked for it: a first message has begun it, or the one before is gone.
const arrive = (id) => {
  const hasBegun = !place && !!id;
  const isGone = !!place && !id;
  place = here = id;
  if (isGone) forbid(training.checked || wasForbidden());
  if (hasBegun) night.keep('no_training', '');
  // Switched on while the first message was under way.
  if (hasBegun && training.checked && value.may_train) ask('set_training', { may_train: false });
  else if (id) forbid(!value.may_train);
};
const shortcuts = h('input', {
  type: 'checkbox', role: 'switch', onchange: () => night.prefer('shortcuts', shortcuts.checked ? 'on' : 'off'),
});
const showShortcuts = () => { shortcuts.checked = night.hasShortcuts(); };
window.addEventListener('storage', showShortcuts); // set in another tab
showShortcuts();
const settings = h('details', { class: 'settings' }, h('summary', {}, icon('gear'), t('settings')),
  h('div', { class: 'settings-body' }, replies, language, theme,
    h('label', { class: 'setting switch' }, h('span', {}, t('shortcuts')), shortcuts)));

const panel = h('aside', { class: 'sidebar', 'aria-label': t('menu') },
  h('div', { class: 'sidebar-top' }, night.mark(), h('b', {}, t('app')), iconButton('close', t('close'), () => show(false))),
  h('button', { type: 'button', class: 'new-chat', onclick: () => openChat('') }, icon('plus'), t('new_chat')),
  search, h('nav', { class: 'chats-box', 'aria-label': t('conversations') }, chats),
  h('div', { class: 'sidebar-foot' }, h('label', { class: 'setting switch' }, h('span', {}, t('no_training')), training),
    version, settings, who));
const shade = h('div', { class: 'shade', onclick: () => show(false) });
element.replaceChildren(panel, shade);

const download = (file) => {
  const link = h('a', { href: URL.createObjectURL(new Blob([file.text], { type: 'application/json' })), download: file.name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
const LINKS = { operate: 'rank', account: 'person' };
// Who goes through the list by keyboard stays where they are when it is drawn anew. A name that is being typed
// stays in the page: taken out, its box would lose the focus, which keeps what was typed so far.
const showChats = () => {
  const at = document.activeElement;
  const id = at?.closest('.chats li')?.dataset.chat;
  const typing = at?.matches('.chats li > input') ? at.parentElement : null;
  const rows = value.chats.map((chat) => (typing && chat.id === id ? typing
    : h('li', { 'data-chat': chat.id }, chatRow(chat))));
  const index = rows.indexOf(typing);
  if (index >= 0) {
    for (const row of [...chats.children]) if (row !== typing) row.remove();
    typing.before(...rows.slice(0, index));
    typing.after(...rows.slice(index + 1));
    return;
  }
  chats.replaceChildren(...rows);
  if (!id) return;
  const row = chats.querySelector(`[data-chat="${id}"]`);
  const same = row?.querySelector(at.matches('.chat-title') ? '.chat-title' : 'summary');
  (same ?? panel.querySelector('.new-chat')).focus({ preventScroll: true });
};
const draw = (isLate) => {
  if (!props.value || (value && props.value.look < value.look)) return;
  const before = value?.file?.key;
  value = props.value;
  if (value.file && value.file.key !== before) download(value.file);
  if (value.named) document.dispatchEvent(new CustomEvent('night:named', { detail: value.named }));
  showChats();
  const note = value.has_more ? (value.search ? 'more_found' : 'older_chats') : (!value.chats.length && value.search ? 'none_found' : '');
  if (note) chats.append(h('li', { class: 'none' }, t(note)));
  // To a chat that was asked for, and may yet come, the switch belongs until another is asked for.
  if (!night.isStale(value) && (!isLate || place === here)) arrive(value.conversation_id);
  replies.lastElementChild.value = night.preference('replies') || String(value.default_replies);
  version.replaceChildren(h('b', {}, t('talking_to', { version: value.version.name })),
    h('span', {}, t(value.version.word, value.version)));
  who.replaceChildren(h('span', { class: 'name' }, value.name),
    ...value.links.map(([key, href]) => h('a', { class: 'icon-button', href, 'aria-label': t(key), title: t(key) }, icon(LINKS[key]))),
    h('form', { method: 'post', action: '/logout', onsubmit: night.forget },
      h('button', { class: 'icon-button', 'aria-label': t('sign_out'), title: t('sign_out') }, icon('out'))));
};
document.addEventListener('night:sidebar', () => show(!isOpen()));
document.addEventListener('night:new', () => openChat(''));
document.addEventListener('night:open', (event) => {
  place = event.detail;
  if (!place) forbid(wasForbidden());
});
document.addEventListener('click', (event) => {
  element.querySelectorAll('details.menu[open]').forEach((menu) => { if (!menu.contains(event.target)) menu.open = false; });
});
wide.addEventListener('change', () => show(wide.matches));
show(wide.matches && night.preference('sidebar') !== 'closed');
forbid(!place && wasForbidden());
night.follow(watch, props, draw);
draw();
