// The talk: phrases light their places and are lit by them; the last answer (or the one chosen) is shown on the picture.
// Gradio hands over: element, trigger, props, watch.

let chosen = { turn: null, span: null };
let shown = ''; // what was last sent to the drawing surface
let pinned = null; // the answer whose places are shown, where it is not the last

const tell = (name, detail) => document.dispatchEvent(new CustomEvent(name, { detail }));
const answers = () => Array.from(element.querySelectorAll('.mm-model'));
const same = (phrase) => ({ turn: Number(phrase.dataset.turn), span: Number(phrase.dataset.span) });

function publish() {
  const all = answers();
  const last = all.find((one) => Number(one.dataset.turn) === pinned) || all[all.length - 1];
  const phrases = last ? Array.from(last.querySelectorAll('.mm-phrase')).map((phrase) => ({
    span: Number(phrase.dataset.span),
    text: phrase.dataset.text,
    colour: phrase.dataset.colour,
    places: JSON.parse(phrase.dataset.places),
  })) : [];
  const next = { turn: last ? Number(last.dataset.turn) : null, picture: last ? last.dataset.picture : '', phrases };
  all.forEach((one) => one.classList.toggle('mm-shown', all.length > 1 && one === last));
  const key = JSON.stringify(next);
  if (key !== shown) tell('mm-answer', next);
  shown = key;
}

function mark(light) {
  element.querySelectorAll('.mm-phrase').forEach((phrase) => {
    const at = same(phrase);
    const on = at.turn === chosen.turn && at.span === chosen.span;
    phrase.setAttribute('aria-pressed', String(on));
    phrase.classList.toggle('mm-on', on);
    phrase.classList.toggle('mm-lit', Boolean(light) && at.turn === light.turn && at.span === light.span);
    phrase.classList.toggle('mm-dim', chosen.span != null && at.turn === chosen.turn && !on);
  });
}

function select(phrase) {
  const at = same(phrase);
  const off = at.turn === chosen.turn && at.span === chosen.span;
  pin(at.turn);
  tell('mm-select', off ? { turn: null, span: null } : at);
}

function pin(turn) {
  pinned = turn;
  publish();
}

const phraseAt = (event) => event.target.closest && event.target.closest('.mm-phrase');

element.addEventListener('click', (event) => {
  const phrase = phraseAt(event);
  if (phrase) return select(phrase);
  const said = event.target.closest('.mm-model');
  if (event.target.closest('.mm-copy')) {
    const text = said.querySelector('.mm-body').innerText;
    navigator.clipboard.writeText(text).then(() => { event.target.textContent = 'Copied'; }, () => { event.target.textContent = 'Not allowed here'; });
    setTimeout(() => { event.target.textContent = 'Copy'; }, 1500);
    return;
  }
  if (said) pin(Number(said.dataset.turn));
  const starter = event.target.closest('.mm-starter');
  if (starter) {
    const box = document.querySelector('#mm-question textarea');
    box.value = starter.dataset.text;
    box.dispatchEvent(new Event('input', { bubbles: true }));
    box.focus();
  }
});
element.addEventListener('keydown', (event) => {
  const phrase = phraseAt(event);
  if (!phrase || (event.key !== 'Enter' && event.key !== ' ')) return;
  event.preventDefault();
  select(phrase);
});
for (const [name, on] of [['pointerover', true], ['focusin', true], ['pointerout', false], ['focusout', false]]) {
  element.addEventListener(name, (event) => {
    const phrase = phraseAt(event);
    if (phrase) tell('mm-light', on ? same(phrase) : { turn: null, span: null });
  });
}
document.addEventListener('mm-select', (event) => {
  chosen = event.detail;
  mark();
  const found = chosen.span == null ? null : element.querySelector(`#mm-phrase-${chosen.turn}-${chosen.span}`);
  if (found) found.scrollIntoView({ block: 'nearest' });
});
document.addEventListener('mm-light', (event) => mark(event.detail));
document.addEventListener('click', (event) => {
  const dismiss = event.target.closest && event.target.closest('.mm-dismiss');
  if (dismiss) dismiss.closest('.mm-card').remove();
});

let count = 0;
function followed() {
  const talk = element.querySelector('.mm-talk');
  if (!talk) return; // the template is not filled yet
  const now = answers().length;
  if (now !== count) {
    pinned = null; // a new answer is what one wants to see
    chosen = { turn: null, span: null };
    tell('mm-select', chosen);
    talk.scrollTop = talk.scrollHeight;
  } else if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 120) talk.scrollTop = talk.scrollHeight;
  count = now;
  mark();
  publish();
}
watch('value', () => requestAnimationFrame(followed));
followed();
