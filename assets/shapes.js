// What can be drawn: its outline, what is under a pointer, how it moves, and the cells of a painted shape.
// Runs in one scope with canvas.js, before it. Places are [x, y] in the unit square of the upright picture.

const KINDS = ['box', 'point', 'scribble', 'polygon', 'mask'];
const TOOLS = { box: 'Draw a box', point: 'Place a point', scribble: 'Draw a line', polygon: 'Draw an outline', mask: 'Paint a shape', select: 'Select and move' };
const NAMES = { box: 'box', point: 'point', scribble: 'line', polygon: 'outline', mask: 'painted shape' };
const CELLS = 256; // of a painted shape, along the longer side of its picture
const MOST_POINTS = 500; // of a line

const tidy = (number) => Math.round(number * 1e6) / 1e6;

function sorted(x0, y0, x1, y1) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
}

function around(points) {
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

// The box around a place of an answer.
function outline(place) {
  if (place.box) return place.box;
  if (place.kind === 'point') return [...place.point, ...place.point];
  return place.points.length ? around(place.points) : null;
}

const pointed = (x, y) => ({ kind: 'point', box: [x, y, x, y] });
const boxed = (box) => ({ kind: 'box', box });

function traced(kind, points) {
  let kept = points.map((point) => point.map(tidy));
  while (kept.length > MOST_POINTS) kept = kept.filter((_, index) => index % 2 === 0 || index === kept.length - 1);
  return { kind, box: around(kept), points: kept };
}

// How far a place lies from the line between two others, all in pixels of the screen.
function distance([x, y], [x0, y0], [x1, y1]) {
  const length = (x1 - x0) ** 2 + (y1 - y0) ** 2;
  const share = length ? clamp(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length) : 0;
  return Math.hypot(x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0));
}

function within([x, y], points) {
  let inside = false;
  points.forEach(([x1, y1], index) => {
    const [x0, y0] = points[(index || points.length) - 1];
    if (y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) inside = !inside;
  });
  return inside;
}

// Whether a region lies under a place, a few pixels of the screen away at most; screen: its [width, height].
function touched(region, at, screen, reach) {
  const scaled = ([x, y]) => [x * screen[0], y * screen[1]];
  const [x0, y0, x1, y1] = region.box;
  const margin = [reach / screen[0], reach / screen[1]];
  if (at.x < x0 - margin[0] || at.x > x1 + margin[0] || at.y < y0 - margin[1] || at.y > y1 + margin[1]) return false;
  if (region.kind === 'mask') {
    const [width, height] = region.mask.size;
    const cells = cellsOf(region.mask);
    const [r, s] = [Math.max(1, Math.round(margin[0] * width)), Math.max(1, Math.round(margin[1] * height))];
    const [x, y] = [Math.floor(at.x * width), Math.floor(at.y * height)];
    for (let j = Math.max(0, y - s); j <= Math.min(height - 1, y + s); j += 1) {
      for (let i = Math.max(0, x - r); i <= Math.min(width - 1, x + r); i += 1) if (cells[j * width + i]) return true;
    }
    return false;
  }
  if (region.kind !== 'scribble' && region.kind !== 'polygon') return true;
  const place = [at.x, at.y];
  if (region.kind === 'polygon' && within(place, region.points)) return true;
  const closed = region.kind === 'polygon' ? [...region.points, region.points[0]] : region.points;
  return closed.some((point, index) => distance(scaled(place), scaled(closed[Math.max(0, index - 1)]), scaled(point)) <= reach);
}

function shifted(box, dx, dy) {
  const [x, y] = [Math.min(1 - box[2], Math.max(-box[0], dx)), Math.min(1 - box[3], Math.max(-box[1], dy))];
  return [box[0] + x, box[1] + y, box[2] + x, box[3] + y].map(clamp);
}

// A region moved as far as the picture goes; a painted one by whole cells.
function moved(region, dx, dy) {
  if (region.kind === 'mask') {
    const [width, height] = region.mask.size;
    const to = shifted(region.box, dx, dy);
    const [right, down] = [Math.round((to[0] - region.box[0]) * width), Math.round((to[1] - region.box[1]) * height)];
    const old = cellsOf(region.mask);
    const cells = new Uint8Array(old.length);
    old.forEach((on, index) => {
      const [x, y] = [(index % width) + right, Math.floor(index / width) + down];
      if (on && x >= 0 && x < width && y >= 0 && y < height) cells[y * width + x] = 1;
    });
    return { ...region, ...paintedShape(cells, region.mask.size) };
  }
  const box = shifted(region.box, dx, dy);
  const [x, y] = [box[0] - region.box[0], box[1] - region.box[1]];
  const points = region.points && region.points.map((point) => [tidy(clamp(point[0] + x)), tidy(clamp(point[1] + y))]);
  return { ...region, box, ...(points ? { points } : {}) };
}

// Cells of a painted shape: [width, height] of them for a picture, from and to run lengths (zeros first).

function cellSize(size) {
  const scale = Math.min(1, CELLS / Math.max(...size));
  return size.map((side) => Math.max(1, Math.round(side * scale)));
}

function cellsOf(mask) {
  const cells = new Uint8Array(mask.size[0] * mask.size[1]);
  let at = 0;
  mask.runs.forEach((run, index) => {
    if (index % 2) cells.fill(1, at, at + run);
    at += run;
  });
  return cells;
}

// The region of painted cells, or null where there is none.
function paintedShape(cells, size) {
  const runs = [];
  let [on, length] = [0, 0];
  const box = [size[0], size[1], 0, 0];
  cells.forEach((cell, index) => {
    if (cell !== on) {
      runs.push(length);
      [on, length] = [cell, 0];
    }
    length += 1;
    if (!cell) return;
    const [x, y] = [index % size[0], Math.floor(index / size[0])];
    [box[0], box[1], box[2], box[3]] = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x + 1), Math.max(box[3], y + 1)];
  });
  runs.push(length);
  if (box[2] === 0) return null;
  return { kind: 'mask', box: box.map((number, index) => tidy(number / size[index % 2])), mask: { size, runs } };
}

// A stroke of the brush over the cells; radius in cells, on: 1 paints, 0 wipes.
function brushed(cells, size, from, to, radius, on) {
  const [start, end] = [from, to].map(({ x, y }) => [x * size[0], y * size[1]]);
  const low = [0, 1].map((axis) => Math.max(0, Math.floor(Math.min(start[axis], end[axis]) - radius)));
  const high = [0, 1].map((axis) => Math.min(size[axis] - 1, Math.ceil(Math.max(start[axis], end[axis]) + radius)));
  for (let y = low[1]; y <= high[1]; y += 1) {
    for (let x = low[0]; x <= high[0]; x += 1) {
      if (distance([x + 0.5, y + 0.5], start, end) <= radius) cells[y * size[0] + x] = on;
    }
  }
  const dot = Math.min(size[1] - 1, Math.floor(end[1])) * size[0] + Math.min(size[0] - 1, Math.floor(end[0]));
  cells[dot] = on; // however small the brush
}
