// Bringing a picture in: file, drop, paste, camera, example. Runs in one scope with canvas.js, before it.
// Gradio hands over: element, trigger, props, upload, watch.

const ACCEPT = 'image/*,.tif,.tiff,.avif';
const NO_PICTURE = 'That is not a picture: choose a JPEG, PNG, WebP, GIF, BMP or TIFF file.';
let camera = null;

function looksLikePicture(file) {
  return file.type.startsWith('image/') || /\.(jpe?g|png|webp|gif|bmp|tiff?|avif|ppm|ico|tga)$/i.test(file.name || '');
}

const blank = (sent, name) => ({
  image: { path: sent.path, url: sent.url, orig_name: name || 'picture.png', meta: { _type: 'gradio.FileData' } },
  view: null, size: null, key: '',
});

// Sends a file to the server and puts it on the surface, in the place of what is there or beside it; an event then lets
// Python look at it.
async function takePicture(file, beside = several()) {
  if (!file) return;
  if (!looksLikePicture(file)) return complain(NO_PICTURE);
  await idle(); // what Python says of the picture before would undo this one
  const adds = beside && value();
  const most = props.most_pictures || 8;
  if (adds && sheets().length >= most) return complain(`There are ${most} pictures already: remove one first.`);
  stopCamera();
  setBusy('Opening the picture');
  try {
    const sent = blank(await upload(file), file.name);
    const now = adds ? value() : null;
    if (now) props.value = { ...now, more: [...(now.more || []), sent], shown: sheets(now).length, selected: null };
    else props.value = { ...sent, more: [], shown: 0, regions: [], selected: null };
    trigger(now ? 'added' : 'picture');
  } catch (error) {
    setBusy(null);
    complain('The picture could not be sent: it may be larger than the page takes. Make it smaller, or look whether the server still runs.');
  }
}

async function takePictures(files, beside = several()) {
  for (const file of beside ? files : files.slice(0, 1)) await takePicture(file, beside);
}

async function idle() {
  for (let waited = 0; waited < 200 && element.classList.contains('mm-busy'); waited += 1) await new Promise((done) => setTimeout(done, 50));
}

function takeExample(index) {
  setBusy('Opening the example');
  trigger('example', { index });
}

// Takes a picture away, with what is drawn on it; the last one leaves the surface empty.
function removePicture(index = shown()) {
  stopCamera();
  const now = value();
  const left = sheets(now).filter((_, number) => number !== index);
  if (!left.length) {
    props.value = null;
    return trigger('picture');
  }
  const kept = now.regions.filter((region) => (region.image || 0) !== index);
  const regions = kept.map((region) => ({ ...region, image: (region.image || 0) - ((region.image || 0) > index ? 1 : 0) }));
  const at = shown(now);
  const up = Math.min(at > index ? at - 1 : at, left.length - 1);
  props.value = { ...now, ...left[0], more: left.slice(1), shown: up, regions, selected: null };
  [past, drag, draft, cross] = [[], null, null, null];
  refresh();
  trigger('removed');
}

function chooseFile(beside = false) {
  const input = document.createElement('input');
  input.type = 'file';
  input.accept = ACCEPT;
  input.multiple = beside;
  input.addEventListener('change', () => takePictures([...input.files], beside));
  input.click();
}

async function startCamera() {
  if (!navigator.mediaDevices || !navigator.mediaDevices.getUserMedia) {
    return complain('This browser gives no camera here: open the page over https or on the machine itself.');
  }
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 }, facingMode: 'environment' } });
  } catch (error) {
    return complain('The camera could not be used: allow it in the browser, or check that one is connected.');
  }
  const video = part('video', 'mm-video');
  video.autoplay = true;
  video.muted = true;
  video.playsInline = true;
  video.srcObject = camera;
  const box = part('div', 'mm-camera', [
    video,
    part('div', 'mm-camera-bar', [button('Take picture', 'mm-primary', shoot), button('Cancel', '', stopCamera)]),
  ]);
  element.querySelector('.mm-canvas').append(box);
  box.querySelector('button').focus();
}

function shoot() {
  const video = element.querySelector('.mm-video');
  if (!video || !video.videoWidth) return;
  const still = document.createElement('canvas');
  still.width = video.videoWidth;
  still.height = video.videoHeight;
  still.getContext('2d').drawImage(video, 0, 0);
  still.toBlob((blob) => takePicture(new File([blob], 'camera.jpg', { type: 'image/jpeg' })), 'image/jpeg', 0.95);
}

function stopCamera() {
  if (camera) camera.getTracks().forEach((track) => track.stop());
  camera = null;
  const box = element.querySelector('.mm-camera');
  if (box) box.remove();
}

function listenForPictures() {
  const holdsFile = (event) => event.dataTransfer && Array.from(event.dataTransfer.types).includes('Files');
  document.addEventListener('dragover', (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    element.classList.add('mm-over');
  });
  document.addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) element.classList.remove('mm-over');
  });
  document.addEventListener('drop', (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    element.classList.remove('mm-over');
    takePictures([...event.dataTransfer.files]);
  });
  document.addEventListener('paste', (event) => {
    const file = Array.from((event.clipboardData || {}).files || []).find(looksLikePicture);
    if (!file) return;
    event.preventDefault();
    takePicture(file);
  });
}

// What stands where no picture is: how to bring one, and the examples.
function emptyView() {
  const examples = (props.examples || []).map((example, index) => {
    const thumb = button('', 'mm-thumb', () => takeExample(index));
    thumb.title = example.name;
    thumb.setAttribute('aria-label', `Example: ${example.name}`);
    const image = part('img');
    image.src = example.source;
    image.alt = '';
    thumb.append(image);
    return thumb;
  });
  return part('div', 'mm-empty', [
    icon('picture', 'mm-empty-icon'),
    part('h3', '', 'Start with a picture'),
    part('p', 'mm-quiet', 'Drop one anywhere, paste it with Ctrl+V, or'),
    part('div', 'mm-empty-row', [button('Choose a file', 'mm-primary', () => chooseFile(false)), button('Use the camera', '', startCamera)]),
    examples.length ? part('p', 'mm-quiet', 'or take an example') : null,
    examples.length ? part('div', 'mm-thumbs', examples) : null,
  ]);
}
