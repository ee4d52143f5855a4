// The heat map over the picture: this component holds its file, the drawing surface shows it. Opacity never asks the server.
// Gradio hands over: element, props, watch.

let opacity = 0.7;

function publish() {
  const map = props.value && props.value.image ? props.value : null;
  document.dispatchEvent(new CustomEvent('mm-heat', { detail: map ? { url: map.image.url, opacity, picture: map.picture } : null }));
  const text = document.createElement('p');
  text.className = 'mm-quiet';
  text.textContent = map ? map.note : 'Choose a kind and press Show: the map is laid over the picture.';
  const scale = document.createElement('div');
  scale.className = 'mm-scale';
  scale.hidden = !map || !map.scale;
  scale.innerHTML = '<span>low</span><i></i><span>high</span>';
  element.querySelector('.mm-heat-note').replaceChildren(scale, text);
}

document.addEventListener('mm-opacity', (event) => {
  opacity = event.detail;
  publish();
});
watch('value', publish);
publish();
