// The ranking board: K cards, ranks with ties, and the foot that says the order and saves it.
// The ranks live here until they are saved; the server checks everything that is sent.
// Why one is better, and why all are bad; the server knows both.
const REASONS = ['correct', 'helpful', 'clear', 'short', 'detailed', 'tone', 'followed'];
const FAULTS = ['wrong', 'unhelpful', 'unclear', 'too_long', 'off_topic', 'unsafe'];
const MOST = 9; // replies that can be compared; the server knows it too
const fire = night.patient(trigger, watch, props);
let value = null;
let cards = new Map();
let mine = null; // what the person has done on this turn so far
let foot = null;
let disliked = '';
let isUnaimed = false; // a key was pressed that is of one reply, and none is chosen
const list = h('div', { class: 'cards', role: 'list', 'aria-label': t('replies') });
const notice = h('p', { class: 'notice', role: 'status' });
const root = h('section', { class: 'board', hidden: true }, notice, list);
element.replaceChildren(root);

const replies = () => value.replies;
const find = (id) => replies().find((reply) => reply.id === id);
const finished = () => replies().filter((reply) => !isWriting(reply));
const ask = (event, more = {}) => fire(event, {
  look: value.look, conversation_id: value.conversation_id, turn_id: value.turn_id, ...more,
});

// `among`: the replies that "best" or "all bad" was said of, once it is saved; before, all that are finished.
const blank = () => ({ places: {}, best: '', allBad: false, among: null, selected: '', since: Date.now(), reasons: new Set() });
const fromSaved = (saved) => {
  const places = saved.kind === 'full' ? saved.places : {};
  const best = (saved.kind === 'best' && Object.keys(saved.places).find((id) => saved.places[id] === 1)) || '';
  return { ...blank(), places: { ...places }, best, allBad: saved.kind === 'all_bad', among: Object.keys(saved.places),
    reasons: new Set(saved.reasons) };
};
// Marks that are not saved are kept: over a reload, while another chat is open, and as more replies come, of
// which they then cover no more than before. Of a ranking that was saved or undone elsewhere (`of`) they are dropped.
const stateOfRanking = () => `${value.revisions} ${value.saved ? 'said' : ''}`;
const keptMarks = () => night.keptOne('marks', value.turn_id);
const keepMarks = () => night.keepOne('marks', value.turn_id, isSavedAsIs() || (value.saved && !kind()) ? null : {
  ...mine, reasons: [...mine.reasons], comment: foot.comment.value, dwell: Date.now() - mine.since, of: stateOfRanking(),
  seen: replies().map((reply) => reply.id) });
const carried = (left) => {
  const seen = finished().map((reply) => reply.id).filter((id) => left.seen.includes(id));
  const among = left.among?.filter(find) ?? (replies().every((reply) => left.seen.includes(reply.id)) ? null : seen);
  return { ...left, places: Object.fromEntries(Object.entries(left.places).filter(([id]) => find(id))), among,
    best: find(left.best) ? left.best : '', reasons: new Set(left.reasons), since: Date.now() - left.dwell };
};
// All were bad, and others have come since: of those nothing is said yet.
const isOutgrown = (saved) => saved.kind === 'all_bad' && replies().some((reply) => !saved.places[reply.id]);
const kind = () => {
  if (mine.best) return 'best';
  if (mine.allBad) return 'all_bad';
  return Object.keys(mine.places).length ? 'full' : '';
};
// Equal and without gaps: 1, 1, 3 becomes 1, 1, 2.
const compacted = (places) => {
  const steps = [...new Set(Object.values(places))].sort((x, y) => x - y);
  return Object.fromEntries(Object.entries(places).map(([id, place]) => [id, steps.indexOf(place) + 1]));
};
const orderText = () => {
  const places = compacted(mine.places);
  const ranked = replies().filter((reply) => places[reply.id]);
  const tiers = [...new Set(ranked.map((reply) => places[reply.id]))].sort((x, y) => x - y);
  return tiers.map((tier) => ranked.filter((r) => places[r.id] === tier).map((r) => r.letter).join(' = ')).join(' > ');
};
const orderSentence = () => {
  if (mine.best) return t('order_best', { letter: find(mine.best).letter });
  if (mine.allBad) return t(Object.keys(placesOfKind()).length === 1 ? 'order_bad' : 'order_all_bad');
  const count = Object.keys(mine.places).length;
  if (count === 0 && value.saved?.kind === 'skip') return t('order_skip');
  if (count === 0 && value.saved && !isOutgrown(value.saved)) return t('order_still', { saved: t(value.saved.word, value.saved) });
  if (count === 0) return t('order_empty');
  return count === 1 ? t('order_one', { letter: orderText() }) : orderText();
};
const placesOfKind = () => {
  if (!mine.best && !mine.allBad) return compacted(mine.places);
  const judged = mine.among ?? finished().map((reply) => reply.id);
  return Object.fromEntries(judged.map((id) => [id, mine.best && mine.best !== id ? 2 : 1]));
};
const summary = (kindNow, places, reasons, comment) =>
  JSON.stringify([kindNow, Object.entries(places).sort(), [...reasons].sort(), comment]);
const isSavedAsIs = () => !!value.saved && (value.saved.kind === 'skip' ? !kind()
  : summary(value.saved.kind, compacted(value.saved.places), value.saved.reasons, value.saved.comment)
    === summary(kind(), placesOfKind(), mine.reasons, foot.comment.value.trim()));
const canSave = () => !isSavedAsIs() && (kind() === 'all_bad' || Object.keys(placesOfKind()).length > 1);
const unsaved = () => (canSave() ? ranking(kind(), placesOfKind()) : null);

// The reply that the next message will answer: chosen, else the best ranked, else the first finished and not called bad.
const nextId = () => {
  if (mine.chosen && find(mine.chosen)) return mine.chosen;
  const places = mine.allBad ? {} : placesOfKind();
  const ranked = replies().filter((reply) => places[reply.id]).sort((x, y) => places[x.id] - places[y.id]);
  const bad = mine.allBad ? placesOfKind() : (value.saved?.kind === 'all_bad' ? value.saved.places : {});
  return (ranked[0] || finished().find((reply) => !bad[reply.id]) || finished()[0] || {}).id;
};

const reasonsOf = (kindNow) => (kindNow === 'all_bad' ? FAULTS : REASONS);
// Why all were bad is no reason why one is best.
const change = (action) => {
  isUnaimed = false;
  const before = reasonsOf(kind());
  action();
  if (reasonsOf(kind()) !== before) mine.reasons.clear();
  keepMarks();
  update();
};
const unless = (id, action) => { const reply = find(id); if (reply && !isWriting(reply)) change(() => action(reply)); };
const does = {
  select: (id, focus) => {
    mine.selected = id; isUnaimed = false;
    if (focus) cards.get(id).root.focus();
    update();
  },
  place: (id, place) => unless(id, () => {
    mine.best = ''; mine.allBad = false;
    if (place) mine.places[id] = place; else delete mine.places[id];
  }),
  best: (id) => unless(id, () => { mine.best = mine.best === id ? '' : id; mine.allBad = false; mine.places = {}; mine.among = null; }),
  allBad: () => {
    change(() => { mine.allBad = !mine.allBad; mine.best = ''; mine.places = {}; mine.among = null; });
    if (mine.allBad) night.reveal(foot.why); // no card has more to be said of it, and why is asked below
  },
  // Of a single reply it is saved at once; a second click takes it back.
  dislike: () => {
    if (mine.allBad && value.saved) { does.undo(); return; }
    if (mine.allBad && disliked === value.turn_id) return; // the first click is on its way
    does.allBad();
    if (!mine.allBad) return; // it was the mark of a click that was lost
    disliked = value.turn_id; setTimeout(() => { disliked = ''; }, night.ANSWER_MS);
    does.save();
  },
  allTied: () => change(() => {
    mine.best = ''; mine.allBad = false;
    mine.places = Object.fromEntries(finished().map((reply) => [reply.id, 1]));
  }),
  clear: () => change(() => { mine.places = {}; mine.best = ''; mine.allBad = false; }),
  next: (id) => {
    change(() => { mine.chosen = mine.chosen === id ? '' : id; });
    night.keep(`next_${value.turn_id}`, mine.chosen);
    document.dispatchEvent(new CustomEvent('night:write'));
  },
  askWhich: () => { isUnaimed = true; update(); },
  copy: (id, button) => night.copy(find(id).edit?.text ?? find(id).text, button),
  edit: (id) => openEditor(cards.get(id), find(id), (text) => ask('demonstrate', { message_id: id, text })),
  stop: (id) => ask('stop_reply', { message_id: id }),
  stopAll: () => ask('stop_turn'),
  regenerate: () => ask('regenerate', {
    look: night.look(() => value.look), replies: Number(night.preference('replies')) || value.default_replies, ranking: unsaved(),
  }),
  save: () => {
    if (!canSave()) return;
    ask('save_ranking', unsaved());
    mine.among = Object.keys(placesOfKind());
  },
  skip: () => {
    isUnaimed = false;
    ask('save_ranking', ranking('skip', {}));
  },
  undo: () => {
    ask('withdraw');
    mine = { ...blank(), chosen: mine.chosen }; foot.comment.value = '';
    night.keepOne('marks', value.turn_id, null); night.say(t('withdrawn'));
  },
};
const ranking = (kindNow, places) => ({
  kind: kindNow, places, reasons: [...mine.reasons], comment: foot.comment.value.trim(),
  dwell_ms: Date.now() - mine.since, shown: replies().map((reply) => reply.id), key: night.key(),
});

const button = (key, name, action, more = {}) =>
  h('button', { type: 'button', class: 'quiet', onclick: action, ...more }, name && icon(name), t(key));
const makeFoot = () => {
  const part = {
    order: h('output', { class: 'order', 'aria-live': 'polite', 'aria-label': t('order') }),
    save: h('button', { type: 'button', class: 'primary', onclick: does.save }, t('save_ranking')),
    saved: h('span', { class: 'saved', role: 'status' }),
    undo: button('undo', 'undo', does.undo),
    bad: button('all_bad', '', does.allBad, { 'aria-pressed': 'false' }),
    comment: h('textarea', { rows: 1, maxlength: 2000, dir: 'auto', 'aria-label': t('comment'), placeholder: t('comment_hint') }),
    compare: makeCompare(replies, () => [mine.selected, mine.allBad ? {} : placesOfKind()]),
    tied: button('all_tied', '', does.allTied),
    clear: button('clear', '', does.clear),
    skip: button('skip', '', does.skip),
    again: button('regenerate', 'again', does.regenerate),
  };
  part.comment.addEventListener('input', () => { night.grow(part.comment); keepMarks(); update(); });
  part.reasons = [...REASONS, ...FAULTS].map((reason) => h('button', {
    type: 'button', class: 'reason', 'data-reason': reason, 'aria-pressed': 'false',
    onclick: () => change(() => { if (!mine.reasons.delete(reason)) mine.reasons.add(reason); }),
  }, t(`reason_${reason}`)));
  part.why = h('div', { class: 'why', hidden: true }, h('span', { class: 'why-label' }, t('reasons')), part.reasons, part.comment);
  part.diff = button('compare', 'compare', () => part.diff.setAttribute('aria-expanded', String(part.compare.toggle())),
    { 'aria-expanded': 'false' });
  // Beside the foot, not in it: once something is said it stays in view above the composer, whatever card is read.
  part.ranking = h('div', { class: 'row ranking' },
    part.order, h('span', { class: 'push' }), part.saved, part.undo, part.save);
  part.root = h('footer', { class: 'board-foot' }, part.why, part.compare.root,
    h('div', { class: 'row tools-row' }, part.bad, part.tied, part.clear, part.skip,
      h('span', { class: 'push' }), part.diff, part.again, keyHelp()));
  return part;
};

// The same again is no news: a screen reader would say it at every word of a reply that is being written.
const tell = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const updateFoot = () => {
  const many = replies().length > 1;
  const isRanked = !!kind() || !!value.saved;
  const writing = replies().some(isWriting);
  foot.ranking.hidden = !many && !isRanked;
  foot.ranking.classList.toggle('is-said', isRanked);
  for (const node of [foot.bad, foot.tied, foot.clear, foot.skip, foot.diff]) node.hidden = !many;
  foot.root.querySelector('.keys').hidden = !many;
  foot.again.hidden = writing;
  const isFull = replies().length >= MOST; // not disabled: a click, a tap or a key is told why
  foot.again.setAttribute('aria-disabled', String(isFull));
  foot.again.title = isFull ? t('no_more_replies') : '';
  foot.skip.hidden ||= isRanked;
  foot.clear.disabled = !kind();
  foot.diff.disabled = finished().length < 2;
  foot.bad.disabled = foot.tied.disabled = finished().length < replies().length || !many;
  foot.bad.setAttribute('aria-pressed', String(mine.allBad));
  tell(foot.order, orderSentence());
  foot.order.classList.toggle('is-order', !!kind());
  foot.why.hidden = !kind();
  foot.reasons.forEach((chip) => {
    const { reason } = chip.dataset;
    chip.setAttribute('aria-pressed', String(mine.reasons.has(reason)));
    chip.hidden = !reasonsOf(kind()).includes(reason) && !mine.reasons.has(reason);
  });
  foot.save.disabled = !canSave();
  foot.save.hidden = isSavedAsIs();
  foot.save.textContent = t(value.saved ? 'save_changes' : 'save_ranking');
  foot.saved.replaceChildren(...(isSavedAsIs() ? [icon('check'), t('saved')] : []));
  foot.undo.hidden = !value.saved;
};
const updateNotice = () => {
  const parts = [];
  if (value.queue) parts.push(value.queue === 1 ? t('waiting_one') : t('waiting', { count: value.queue }));
  if (value.dropped) parts.push(t('dropped', { count: value.dropped }));
  if (!replies().length) parts.push(t(value.is_cut_off ? 'cut_off' : 'no_replies'));
  if (isUnaimed && night.hasShortcuts()) parts.push(t('choose_first'));
  tell(notice, parts.join(' '));
  notice.hidden = !parts.length;
};
const update = () => {
  const next = replies().length > 1 ? nextId() : '';
  const places = kind() === 'full' ? mine.places : {};
  for (const reply of replies()) {
    updateCard(cards.get(reply.id), reply, {
      place: places[reply.id] || 0, isBest: mine.best === reply.id, isChosen: mine.chosen === reply.id,
      isSelected: mine.selected === reply.id, isBad: mine.allBad, isNext: next === reply.id && !isWriting(reply),
    });
  }
  updateFoot();
  updateNotice();
  night.shared.turn = { turn_id: value.turn_id, count: replies().length, writing: replies().some(isWriting), chosen: nextId() || '',
    // Whoever ranks and then writes on has voted: the composer sends this along.
    ranking: () => (value.turn_id ? unsaved() : null) };
  document.dispatchEvent(new CustomEvent('night:turn'));
};
const rebuild = () => {
  isUnaimed = false;
  const saved = value.saved && !isOutgrown(value.saved) ? value.saved : null;
  const left = keptMarks()?.of === stateOfRanking() ? keptMarks() : null;
  mine = left ? carried(left) : (saved ? fromSaved(saved) : blank());
  mine.chosen = night.kept(`next_${value.turn_id}`);
  foot = makeFoot();
  foot.comment.value = left ? left.comment : saved?.comment || '';
  cards = new Map(replies().map((reply) => [reply.id, makeCard(reply, replies().length, does)]));
  list.replaceChildren(...[...cards.values()].map((part) => part.root));
  list.dataset.count = replies().length;
  replies().filter((reply) => night.draft(reply.id)).forEach((reply) => does.edit(reply.id));
  root.replaceChildren(notice, list, foot.ranking, foot.root);
};
// More replies to the same message: the first of them comes into view.
const showMore = (before) => {
  if (before?.turn_id !== value.turn_id) return;
  const fresh = replies().find((reply) => before.replies.every((one) => one.id !== reply.id));
  if (fresh) requestAnimationFrame(() => cards.get(fresh.id)?.root.scrollIntoView({ block: 'start', behavior: 'instant' }));
};
const draw = () => {
  if (night.isStale(props.value)) return;
  const before = value;
  const was = before?.turn_id && stateOfRanking();
  value = props.value;
  root.hidden = !value.turn_id;
  if (!value.turn_id) { night.shared.turn = null; document.dispatchEvent(new CustomEvent('night:turn')); return; }
  const same = (x) => [x.turn_id, ...x.replies.map((reply) => reply.id)].join();
  if (!before?.turn_id || same(before) !== same(value)) { rebuild(); showMore(before); }
  else if (!before.saved && value.saved) night.say(`${t('saved')}: ${t(value.saved.word, value.saved)}`);
  // Saved, they are kept no more; what was marked while the answer was on its way is of the state it brought.
  if (was !== stateOfRanking() && keptMarks()) keepMarks();
  update();
};

document.addEventListener('night:stop', () => { if (value?.turn_id) does.stopAll(); });
night.follow(watch, props, draw);
draw();
