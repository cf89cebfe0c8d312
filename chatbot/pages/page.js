// What the scripts of all components share, as `night`. Texts enter the page as text: `h` never parses markup.
// The one exception is `night.put`, for HTML that the server has rendered and sanitised.
window.night ??= (() => {
  const LANGUAGES = Object.keys(window.nightWords);
  const preference = (name) => {
    try { return localStorage.getItem(`night_${name}`) || ''; } catch { return cookie(name); }
  };
  const prefer = (name, value) => {
    try { localStorage.setItem(`night_${name}`, value); } catch { /* private mode: the cookie keeps it */ }
    document.cookie = `night_${name}=${value}; path=/; max-age=31536000; samesite=lax`;
  };
  const cookie = (name) => document.cookie.match(new RegExp(`(?:^|; )night_${name}=([^;]*)`))?.[1] || '';
  const chosen = cookie('language');
  const language = LANGUAGES.includes(chosen) ? chosen
    : (navigator.language.toLowerCase().startsWith('zh') ? 'zh-CN' : 'en');
  document.documentElement.lang = language;

  // The words for `key`, with {name} filled from `values`.
  const t = (key, values = {}) =>
    (window.nightWords[language][key] ?? key).replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);

  const attribute = (node, key, value) => {
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, '');
    else if (value !== false && value != null) node.setAttribute(key, value);
  };
  // An element; children are elements or texts.
  const h = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) attribute(node, key, value);
    node.append(...children.flat().filter((child) => child != null && child !== false));
    return node;
  };
  // Server-made, sanitised HTML, a piece per block; only pieces that changed are replaced.
  const put = (node, blocks) => {
    while (node.children.length > blocks.length) node.lastElementChild.remove();
    blocks.forEach((block, index) => {
      let piece = node.children[index];
      if (!piece) node.append(piece = h('div', { class: 'piece', dir: 'auto' }));
      if (piece.nightSource === block) return;
      piece.innerHTML = block;
      piece.nightSource = block;
      // Code runs from left to right, and says nothing of the direction of the words around it.
      piece.querySelectorAll('.code, code').forEach((code) => { code.dir = 'ltr'; });
    });
  };

  const PATHS = {
    menu: 'M4 6h16M4 12h16M4 18h16', plus: 'M12 5v14M5 12h14', close: 'M6 6l12 12M18 6L6 18',
    search: 'M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM21 21l-5-5', more: 'M5 12h.01M12 12h.01M19 12h.01',
    copy: 'M9 9h11v11H9zM5 15H4V4h11v1', check: 'M5 12.5l4.5 4.5L19 7.5', edit: 'M4 20h4L19 9l-4-4L4 16zM13 7l4 4',
    before: 'M14 6l-6 6 6 6', after: 'M10 6l6 6-6 6',
    stop: 'M8 8h8v8H8z', next: 'M5 5v6a4 4 0 0 0 4 4h10M15 11l4 4-4 4', send: 'M12 19V5M6 11l6-6 6 6',
    star: 'M12 4l2.4 5.2 5.6.7-4.1 3.9 1.1 5.6-5-2.8-5 2.8 1.1-5.6L4 9.9l5.6-.7z',
    again: 'M4 12a8 8 0 0 1 14-5.3L20 9M20 4v5h-5M20 12a8 8 0 0 1-14 5.3L4 15M4 20v-5h5',
    undo: 'M9 14L4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3', compare: 'M4 5h7v14H4zM13 5h7v14h-7z',
    rank: 'M5 19V11M12 19V5M19 19v-6', gear: 'M4 7h10M18 7h2M4 17h2M10 17h10M16 5v4M8 15v4',
    out: 'M10 4H5v16h5M14 8l4 4-4 4M18 12H9', person: 'M12 4a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM4 21c1-5 15-5 16 0',
    bad: 'M7 13V4h9.6a2 2 0 0 1 1.9 1.4l1.6 5.2a1.9 1.9 0 0 1-1.8 2.4h-5l.8 4.7a1.7 1.7 0 0 1-3.1 1.2L7 13zM7 4H3.6v9H7',
    keys: 'M3 7h18v11H3zM7 11h.01M11 11h.01M15 11h.01M8 15h8', panel: 'M4 5h16v14H4zM10 5v14',
  };
  const svg = (tag, attributes) => {
    const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const icon = (name) => {
    const image = svg('svg', { viewBox: '0 0 24 24', class: 'icon', 'data-icon': name, 'aria-hidden': 'true' });
    image.append(svg('path', { d: PATHS[name] }));
    return image;
  };
  const mark = () => {
    const image = svg('svg', { viewBox: '0 0 32 32', class: 'mark', 'aria-hidden': 'true' });
    image.append(svg('rect', { width: 32, height: 32, rx: 9, class: 'mark-ground' }),
      svg('path', { d: 'M21.5 19.2A8.2 8.2 0 0 1 12.6 8.4a8.4 8.4 0 1 0 8.9 10.8z', class: 'mark-moon' }),
      svg('circle', { cx: 21.6, cy: 10.6, r: 1.5, class: 'mark-moon' }));
    return image;
  };
  // A button that shows only an icon, named for those who cannot see it.
  const iconButton = (name, label, onclick, more = {}) =>
    h('button', { type: 'button', class: 'icon-button', 'aria-label': label, title: label, onclick, ...more }, icon(name));

  const live = h('div', { class: 'unseen', 'aria-live': 'polite' });
  const say = (text) => {
    if (!live.isConnected) document.body.append(live);
    live.textContent = text;
  };
  // The session has ended, in another tab perhaps. It is said once, with the way back in, and nothing is waited for:
  // of each event that is refused Gradio would show a line of its own, so it hears nothing of that answer.
  const ended = h('div', { class: 'signed-out', role: 'alert' });
  const { fetch } = window;
  window.fetch = async (...request) => {
    const answer = await fetch(...request);
    if (!answer.url.includes('/queue/join')) return answer;
    if (answer.status !== 401) { ended.remove(); return answer; }
    const next = encodeURIComponent(location.pathname + location.search);
    ended.replaceChildren(t('signed_out'), ' ', h('a', { href: `/login?next=${next}` }, t('sign_in')));
    document.body.append(ended);
    document.dispatchEvent(new CustomEvent('night:signed-out'));
    return new Promise(() => {});
  };
  const copy = async (text, button) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // no clipboard without https: the old way
      const area = h('textarea', { class: 'unseen' });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand('copy');
      area.remove();
    }
    say(t('copied'));
    button.replaceChildren(icon('check'));
    setTimeout(() => button.replaceChildren(icon('copy')), 1200);
  };
  const isTyping = () => {
    const node = document.activeElement;
    return !!node && (node.isContentEditable || /^(TEXTAREA|SELECT)$/.test(node.tagName)
      || (node.tagName === 'INPUT' && !/^(radio|checkbox|button)$/.test(node.type)));
  };
  const grow = (area) => {
    area.style.height = 'auto';
    area.style.height = `${Math.min(area.scrollHeight + 2, window.innerHeight * 0.4)}px`;
  };
  const key = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, '0')).join('');
  // While an input method is open, Enter and Escape are its own.
  const isComposing = (event) => event.isComposing || event.keyCode === 229;

  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  const showTheme = () => {
    const theme = new URL(location).searchParams.get('__theme') || preference('theme');
    document.body.classList.toggle('dark', theme === 'dark' || (theme !== 'light' && dark.matches));
  };
  dark.addEventListener('change', showTheme);
  showTheme();

  // As little as brings all of it into view; at once for those who want nothing to move.
  const still = window.matchMedia('(prefers-reduced-motion: reduce)');
  const reveal = (node) => node.scrollIntoView({ block: 'nearest', behavior: still.matches ? 'instant' : 'smooth' });

  // Keys of one character act unless the person has turned them off, in this tab or in another.
  const hasShortcuts = () => preference('shortcuts') !== 'off';

  // For this tab, over a reload; where the browser keeps nothing, as long as the page lives.
  const keeping = new Map();
  const keep = (name, text) => {
    keeping.set(name, text);
    try { sessionStorage.setItem(`night_${name}`, text); } catch { /* for this page only */ }
  };
  const kept = (name) => {
    if (keeping.has(name)) return keeping.get(name);
    try { return sessionStorage.getItem(`night_${name}`) || ''; } catch { return ''; }
  };
  // Of many under one name, each by its id, the latest few; null takes one away.
  const MOST_KEPT = 100;
  const many = (name) => JSON.parse(kept(name) || '[]');
  const keepOne = (name, id, what) => {
    const others = many(name).filter(([other]) => other !== id);
    keep(name, JSON.stringify(what ? [...others, [id, what]].slice(-MOST_KEPT) : others));
  };
  const keptOne = (name, id) => many(name).find(([other]) => other === id)?.[1] ?? null;
  const forget = () => { try { sessionStorage.clear(); } catch { /* nothing was kept */ } };
  // What is kept belongs to one person, whom the sign-in names in a cookie: the next one finds nothing of it.
  const person = cookie('person');
  if (kept('person') !== person) { forget(); keep('person', person); }
  const ANSWER_MS = 10000; // after this long without an answer a person may send again
  // What a person writes in place of a text, by the id of that text: kept until the server has taken it (`settle`)
  // or the person cancels. Each wording has a key of its own, by which the server knows one that it has stored.
  const draft = (id) => JSON.parse(kept(`edit_${id}`) || 'null');
  const settle = (id) => keep(`edit_${id}`, '');
  // The box in which it is written, and the buttons below: `verb` hands the wording to `save`.
  const editor = ({ id, text, label, verb, save, close }) => {
    let wording = draft(id) ?? { text, key: key() };
    const area = h('textarea', { 'aria-label': label, maxlength: 32000, dir: 'auto' });
    area.value = wording.text;
    const cancel = () => { settle(id); close(); };
    const allow = () => { saveButton.disabled = !area.value.trim(); };
    const saveButton = h('button', {
      type: 'button', class: 'primary',
      onclick: () => {
        saveButton.disabled = true;
        setTimeout(allow, ANSWER_MS);
        save(wording);
      },
    }, t(verb));
    area.addEventListener('input', () => {
      wording = { text: area.value, key: key() };
      keep(`edit_${id}`, area.value === text ? '' : JSON.stringify(wording));
      allow();
      grow(area);
    });
    area.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape' || isComposing(event)) return;
      event.stopPropagation(); // elsewhere on the page Escape stops the replies
      cancel();
    });
    requestAnimationFrame(() => grow(area));
    return [area, h('div', { class: 'row' }, saveButton,
      h('button', { type: 'button', class: 'quiet', onclick: cancel }, t('cancel')))];
  };

  // The conversation in the address; empty is a new chat.
  const address = () => new URL(location).searchParams.get('c') || '';

  // Which look at the page this is: an answer to an earlier look is ignored by every component.
  let looks = 0;
  let latest = 0;
  // No answer came to the look `lost`: answers to the one that is shown count again, and so does a late one.
  const lookBack = (lost, shown) => {
    if (latest !== lost) return;
    latest = shown;
    document.dispatchEvent(new CustomEvent('night:again'));
  };
  // `shown` gives the look that the component shows: back to that one where no answer comes.
  const look = (shown) => {
    looks += 1;
    latest = looks;
    const asked = looks;
    if (shown) setTimeout(() => lookBack(asked, shown()), ANSWER_MS);
    return asked;
  };
  const isStale = (value) => !value || value.look < latest;
  // Draw what comes; and with `true` what came while the answer to a look was awaited that never did.
  const follow = (watch, props, draw) => {
    let isMissed = false;
    watch('value', () => { isMissed = isStale(props.value); draw(false); });
    document.addEventListener('night:again', () => {
      if (!isMissed || isStale(props.value)) return;
      isMissed = false;
      draw(true);
    });
  };
  // Gradio loses the answer to an event sent just as the stream of an earlier one closes; any further event
  // brings it. So a component that hears no answer for a second asks the page for an empty event. An answer
  // to an earlier look, which often comes just before its stream closes, does not count.
  const patient = (trigger, watch, props) => {
    let left = 0;
    let timer = 0;
    let asked = 0; // the look whose answer is awaited
    const nudge = () => {
      if (left <= 0) return;
      left -= 1;
      document.dispatchEvent(new CustomEvent('night:nudge'));
      timer = setTimeout(nudge, 2000);
    };
    watch('value', () => {
      if (props.value?.look < asked) return;
      left = 0;
      clearTimeout(timer);
    });
    document.addEventListener('night:signed-out', () => { left = 0; clearTimeout(timer); });
    return (event, data) => {
      left = 4;
      asked = data.look;
      clearTimeout(timer);
      timer = setTimeout(nudge, 1000);
      trigger(event, data);
    };
  };
  const shared = { turn: null, noTraining: false };
  return { t, h, put, icon, mark, iconButton, say, copy, isTyping, grow, key, isComposing, language, preference,
    prefer, showTheme, reveal, hasShortcuts, keep, kept, keepOne, keptOne, forget, ANSWER_MS, draft, settle, editor, address, look, lookBack, isStale, follow, patient, shared };
})();
