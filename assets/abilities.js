// What the open model takes: this component holds it, the drawing surface offers the tools for it.
// Gradio hands over: element, props, watch.

const publish = () => document.dispatchEvent(new CustomEvent('mm-abilities', { detail: props.value || {} }));
watch('value', publish);
publish();
