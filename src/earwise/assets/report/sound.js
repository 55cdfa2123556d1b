// A player and a spectrogram for each clip of a sample. The spectrogram is computed here, when it is looked at.

const SPECTRUM_RATE = 16000; // Hz; the picture reaches up to half of it
const WINDOW = 512; // samples of one spectrum
const MAX_COLUMNS = 900;
const PICTURE_HEIGHT = 128; // pixels
const RANGE_DB = 75; // from the loudest point down to black
const PALETTE = [[7, 5, 20], [61, 15, 95], [137, 34, 106], [212, 72, 66], [249, 142, 9], [252, 255, 164]];

function soundPlayer(clip) {
  if (!clip.url && !clip.href) {
    return element("p", {class: "noclip"}, `${clip.name}: the file is not there any more, so there is nothing to play`);
  }
  const isSegment = clip.href && (clip.start > 0 || clip.end !== null);
  const fragment = isSegment ? `#t=${clip.start}${clip.end === null ? "" : `,${clip.end}`}` : "";
  const player = element("audio", {controls: true, preload: "metadata", "aria-label": `Clip ${clip.name}`,
    src: clip.url || clip.href + fragment});
  const note = element("p", {class: "note"}, clip.name, isSegment ? `, ${clip.start} s to ${clip.end ?? "its end"}` : "",
    clip.url ? "" : " (linked, not in this page)");
  player.addEventListener("error", () => note.replaceChildren(
    `${clip.name} cannot be played: it is not at its path from this page, or the browser does not know its format`));
  const picture = element("figure", {class: "spectrum", hidden: true});
  const box = element("div", {class: "clip"}, player, picture, note);
  drawSpectrum(clip, picture, player).catch((error) => {
    if (!clip.url) note.append(". No spectrogram: a page opened from a folder may not read files beside it");
    else note.append(`. No spectrogram: ${error.message}`);
  });
  return box;
}

async function drawSpectrum(clip, figure, player) {
  const buffer = clip.url ? bytesOfUrl(clip.url) : await (await fetch(clip.href)).arrayBuffer();
  const decoded = await new OfflineAudioContext(1, 1, SPECTRUM_RATE).decodeAudioData(buffer);
  const first = Math.round((clip.start || 0) * SPECTRUM_RATE);
  const last = clip.end == null ? decoded.length : Math.round(clip.end * SPECTRUM_RATE);
  const samples = monoSamples(decoded).subarray(first, last);
  if (samples.length < WINDOW) throw new Error("the clip is too short");
  const canvas = paintSpectrum(samples);
  const seconds = samples.length / SPECTRUM_RATE;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Spectrogram of ${clip.name}: ${seconds.toFixed(1)} seconds, 0 to ${SPECTRUM_RATE / 2000} kHz`);
  const cursor = element("i", {class: "cursor", "aria-hidden": "true"});
  const offset = clip.href ? clip.start || 0 : 0;
  player.addEventListener("timeupdate", () => { cursor.style.left = `${100 * Math.min(1, (player.currentTime - offset) / seconds)}%`; });
  canvas.addEventListener("click", (event) => {
    player.currentTime = offset + (event.offsetX / canvas.clientWidth) * seconds;
    player.play();
  });
  figure.replaceChildren(element("div", {class: "picture"}, canvas, cursor),
    element("figcaption", {}, `0 to ${seconds.toFixed(1)} s, 0 to ${SPECTRUM_RATE / 2000} kHz; click to play from there`));
  figure.hidden = false;
}

function bytesOfUrl(url) {
  const text = atob(url.slice(url.indexOf(",") + 1));
  return Uint8Array.from(text, (character) => character.charCodeAt(0)).buffer;
}

function monoSamples(decoded) {
  const mono = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    decoded.getChannelData(channel).forEach((value, place) => { mono[place] += value / decoded.numberOfChannels; });
  }
  return mono;
}

function paintSpectrum(samples) {
  const hop = Math.max(WINDOW / 4, Math.ceil((samples.length - WINDOW) / MAX_COLUMNS));
  const columns = Math.floor((samples.length - WINDOW) / hop) + 1;
  const levels = new Float32Array(columns * PICTURE_HEIGHT);
  const bins = WINDOW / 2 / PICTURE_HEIGHT;
  const taper = Float32Array.from({length: WINDOW}, (_, place) => 0.5 - 0.5 * Math.cos(2 * Math.PI * place / WINDOW));
  let loudest = -Infinity;
  for (let column = 0; column < columns; column++) {
    const power = powerSpectrum(samples.subarray(column * hop, column * hop + WINDOW), taper);
    for (let line = 0; line < PICTURE_HEIGHT; line++) {
      let sum = 1e-12;
      for (let bin = 0; bin < bins; bin++) sum += power[line * bins + bin];
      const level = 10 * Math.log10(sum);
      levels[column * PICTURE_HEIGHT + line] = level;
      loudest = Math.max(loudest, level);
    }
  }
  const canvas = element("canvas", {width: columns, height: PICTURE_HEIGHT});
  const context = canvas.getContext("2d"), image = context.createImageData(columns, PICTURE_HEIGHT);
  for (let column = 0; column < columns; column++) {
    for (let line = 0; line < PICTURE_HEIGHT; line++) {
      const level = 1 + (levels[column * PICTURE_HEIGHT + line] - loudest) / RANGE_DB;
      const start = 4 * ((PICTURE_HEIGHT - 1 - line) * columns + column);
      image.data.set([...colourOf(loudest <= -119 ? 0 : Math.max(0, level)), 255], start);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function colourOf(level) {
  const place = Math.min(level, 0.999) * (PALETTE.length - 1), lower = Math.floor(place), share = place - lower;
  return PALETTE[lower].map((value, channel) => value + share * (PALETTE[lower + 1][channel] - value));
}

/** Power of each of the WINDOW / 2 frequencies: a radix-2 Fourier transform in place. */
function powerSpectrum(samples, taper) {
  const real = new Float32Array(WINDOW), imaginary = new Float32Array(WINDOW);
  const bits = Math.log2(WINDOW);
  for (let place = 0; place < WINDOW; place++) {
    let reversed = 0;
    for (let bit = 0; bit < bits; bit++) reversed |= ((place >> bit) & 1) << (bits - 1 - bit);
    real[reversed] = samples[place] * taper[place];
  }
  for (let size = 2; size <= WINDOW; size *= 2) {
    const half = size / 2, angle = -2 * Math.PI / size;
    for (let offset = 0; offset < half; offset++) {
      const cosine = Math.cos(angle * offset), sine = Math.sin(angle * offset);
      for (let even = offset; even < WINDOW; even += size) {
        const odd = even + half;
        const x = real[odd] * cosine - imaginary[odd] * sine, y = real[odd] * sine + imaginary[odd] * cosine;
        real[odd] = real[even] - x; imaginary[odd] = imaginary[even] - y;
        real[even] += x; imaginary[even] += y;
      }
    }
  }
  return real.subarray(0, WINDOW / 2).map((value, place) => value * value + imaginary[place] * imaginary[place]);
}
