// Pictures are {width, height, data}: RGB planes one after the other, Float32Array in [0, 1].
// What the Python library does to them (images/image.py and images/tiling.py), so that both give the same picture.

const VARIANCE = 0.01; // of the blending Gaussian, in units of the squared tile side

const cubic = (x) => { // a = -0.5
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
};

// For every position of the enlarged axis: the first pixel that counts, and the weights from there on.
const cubicWeights = (size, factor) =>
  Array.from({ length: size * factor }, (_, index) => {
    const centre = (index + 0.5) / factor;
    const first = Math.max(0, Math.floor(centre - 1.5)), end = Math.min(size, Math.floor(centre + 2.5));
    const weights = Array.from({ length: end - first }, (_, k) => cubic(first + k + 0.5 - centre));
    const sum = weights.reduce((a, b) => a + b);
    return [first, weights.map((weight) => weight / sum)];
  });

/** Bicubic enlargement, as Pillow's BICUBIC without its rounding to 8 bits. */
export const enlarge = ({ width, height, data }, factor) => {
  const columns = cubicWeights(width, factor), rows = cubicWeights(height, factor);
  const wide = width * factor, tall = height * factor;
  const across = new Float32Array(3 * height * wide), found = new Float32Array(3 * tall * wide);
  for (let row = 0; row < 3 * height; row++)
    columns.forEach(([first, weights], x) => {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * data[row * width + first + k];
      across[row * wide + x] = sum;
    });
  for (let plane = 0; plane < 3; plane++)
    rows.forEach(([first, weights], y) => {
      for (let x = 0; x < wide; x++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * across[(plane * height + first + k) * wide + x];
        found[(plane * tall + y) * wide + x] = Math.min(1, Math.max(0, sum));
      }
    });
  return { width: wide, height: tall, data: found };
};

// Position of the pixel that reflection puts at `index`.
const reflected = (index, size) => {
  const period = 2 * (size - 1) || 1;
  return Math.min(index % period, period - (index % period)) % size;
};

/** Padded right and bottom by reflection until both sides divide by `multiple`. */
export const pad = (picture, multiple) => {
  const upTo = (size) => Math.ceil(size / multiple) * multiple;
  return gather(picture, upTo(picture.width), upTo(picture.height), reflected);
};

/** The part of `width` x `height` pixels from (left, top) on. */
export const crop = (picture, left, top, width, height) =>
  gather(picture, width, height, (index, size, axis) => index + (axis === "x" ? left : top));

const gather = (from, width, height, place) => {
  const data = new Float32Array(3 * width * height);
  const columns = Array.from({ length: width }, (_, x) => place(x, from.width, "x"));
  for (let plane = 0, to = 0; plane < 3; plane++)
    for (let y = 0; y < height; y++) {
      const row = (plane * from.height + place(y, from.height, "y")) * from.width;
      for (const x of columns) data[to++] = from.data[row + x];
    }
  return { width, height, data };
};

// Tiles along an axis: where each starts in the input, and its weights along the enlarged axis, which sum to 1.
const windows = (size, tile, factor) => {
  const side = Math.min(tile, size), stride = tile - Math.floor(tile / 8), starts = [0];
  while (starts.at(-1) + side < size) starts.push(Math.min(starts.at(-1) + stride, size - side));
  const length = side * factor, total = new Float64Array(size * factor);
  const bell = Array.from({ length }, (_, k) => Math.exp(-(((k - (length - 1) / 2) / length) ** 2) / (2 * VARIANCE)));
  for (const start of starts) bell.forEach((weight, k) => { total[start * factor + k] += weight; });
  return starts.map((start) => ({
    start, side, weights: bell.map((weight, k) => (starts.length === 1 ? 1 : weight / total[start * factor + k])),
  }));
};

/** Tiles of a picture, row by row: {left, top, width, height, columns, rows}, the last two being weights. */
export const tiles = ({ width, height }, tile, factor) =>
  windows(height, tile, factor).flatMap((row) =>
    windows(width, tile, factor).map((column) => ({
      left: column.start, top: row.start, width: column.side, height: row.side,
      columns: column.weights, rows: row.weights,
    })));

/** Sum of weighted tiles: `data` has red, green, blue and weight of each pixel by turns. */
export const canvasFor = ({ width, height }, factor) => ({
  width: width * factor, height: height * factor, data: new Float32Array(4 * width * height * factor * factor),
});

/** Add an enlarged tile (a picture, perhaps padded) to such a sum. */
export const blend = (sum, tile, part, factor) => {
  tile.rows.forEach((vertical, y) => {
    tile.columns.forEach((horizontal, x) => {
      const weight = vertical * horizontal;
      const at = 4 * ((tile.top * factor + y) * sum.width + tile.left * factor + x);
      for (let plane = 0; plane < 3; plane++)
        sum.data[at + plane] += weight * part.data[(plane * part.height + y) * part.width + x];
      sum.data[at + 3] += weight;
    });
  });
};

/** 8-bit RGBA of a tile's place in the sum; what lacks tiles yet is the more transparent the more it lacks. */
export const visible = (sum, tile, factor) => {
  const width = tile.columns.length, height = tile.rows.length, pixels = new ImageData(width, height);
  for (let y = 0, to = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const at = 4 * ((tile.top * factor + y) * sum.width + tile.left * factor + x), weight = sum.data[at + 3];
      for (let plane = 0; plane < 3; plane++) pixels.data[to++] = (255 * sum.data[at + plane]) / weight;
      pixels.data[to++] = 255 * weight;
    }
  return pixels;
};

/** A picture of the RGBA pixels of a canvas. */
export const pictureOf = ({ width, height, data }) => {
  const planes = new Float32Array(3 * width * height);
  for (let pixel = 0; pixel < width * height; pixel++)
    for (let plane = 0; plane < 3; plane++) planes[plane * width * height + pixel] = data[4 * pixel + plane] / 255;
  return { width, height, data: planes };
};
