// A video or a sound: its player, and under it a strip of its length on which the last answer's stretches of time lie.
// Gradio hands over: element, props, watch. Nothing plays by itself.

const seconds = (time) => `${time.toFixed(time < 10 ? 2 : 1)} s`;
let media = null;
let strip = null;
let laid = ''; // what lies on the strip: it is laid anew only where that changes

function made(tag, name, text = '') {
  const part = document.createElement(tag);
  part.className = name;
  part.textContent = text;
  return part;
}

function length() {
  return media && Number.isFinite(media.duration) && media.duration > 0 ? media.duration : (props.value || {}).seconds || 0;
}

function seek(time) {
  if (!media) return;
  media.currentTime = Math.max(0, Math.min(time, length()));
  element.querySelector('.mm-reel').dataset.at = String(time);
}

function lay() {
  const box = element.querySelector('.mm-reel');
  if (!box) return;
  const reel = props.value && props.value.file ? props.value : null;
  if (media) media.pause();
  media = strip = null;
  if (!reel) return box.replaceChildren();
  media = made(reel.kind === 'video' ? 'video' : 'audio', 'mm-player');
  Object.assign(media, { controls: true, preload: 'metadata', playsInline: true, src: reel.file.url });
  media.setAttribute('aria-label', `${reel.kind}: ${reel.file.orig_name || ''}`);
  strip = made('div', 'mm-strip');
  strip.setAttribute('role', 'group');
  strip.setAttribute('aria-label', 'When: stretches of the last answer');
  strip.addEventListener('click', (event) => {
    const bar = event.target.closest('.mm-stretch');
    const at = strip.getBoundingClientRect();
    seek(bar ? Number(bar.dataset.start) : ((event.clientX - at.left) / at.width) * length());
  });
  const head = made('i', 'mm-head-line');
  media.addEventListener('timeupdate', () => { head.style.left = `${(100 * media.currentTime) / (length() || 1)}%`; });
  media.addEventListener('error', () => note.append(' This browser cannot play it; the model can be asked all the same.'), { once: true });
  const note = made('p', 'mm-quiet', `${reel.file.orig_name || reel.kind}, ${seconds(reel.seconds)}`);
  const remove = made('button', 'mm-button', 'Remove');
  remove.type = 'button';
  remove.addEventListener('click', () => { props.value = null; lay(); });
  note.append(' ', remove);
  strip.append(head);
  box.replaceChildren(media, strip, note);
  laid = '';
  mark();
}

// Stretches of the shown answer, where it is about this clip.
function mark() {
  if (!strip) return;
  const said = Array.from(document.querySelectorAll('#mm-chat .mm-model'));
  const last = said.find((one) => one.classList.contains('mm-shown')) || said[said.length - 1];
  const found = last && last.dataset.clip === props.value.key ? Array.from(last.querySelectorAll('.mm-moment')) : [];
  const key = JSON.stringify(found.map((moment) => [moment.title, { ...moment.dataset }]));
  if (key === laid) return;
  laid = key;
  strip.querySelectorAll('.mm-stretch').forEach((bar) => bar.remove());
  const whole = props.value.seconds || 1;
  strip.append(...found.map((moment) => {
    const bar = made('button', 'mm-stretch');
    const [start, end] = [Number(moment.dataset.start), Number(moment.dataset.end)];
    bar.type = 'button';
    bar.title = moment.title;
    bar.setAttribute('aria-label', moment.title);
    bar.dataset.start = moment.dataset.start;
    bar.style.setProperty('--mark', moment.dataset.colour);
    bar.style.left = `${(100 * start) / whole}%`;
    bar.style.width = `${Math.max(0.6, (100 * (end - start)) / whole)}%`;
    return bar;
  }));
}

document.addEventListener('click', (event) => {
  const moment = event.target.closest && event.target.closest('#mm-chat .mm-moment');
  const said = moment && moment.closest('.mm-model');
  if (said && props.value && said.dataset.clip === props.value.key) seek(Number(moment.dataset.start));
});
document.addEventListener('mm-answer', mark); // the talk tells when another answer is shown
new MutationObserver(mark).observe(document.querySelector('#mm-chat') || element, { childList: true, subtree: true });
watch('value', lay);
lay();
