// The page in headless Chromium: what is drawn is recognised, on a desktop and on a phone.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

import { serve } from "../serve.js";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const SHOTS = process.env.SCREENSHOTS; // a folder to leave pictures in
const hasImages = existsSync(fileURLToPath(new URL("../dist/models/efficientnet.dcb", import.meta.url)));

let browser;
before(async () => {
  const quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
  const args = [...quiet, "--disable-component-update", "--disable-sync"];
  browser = await chromium.launch({ executablePath: CHROMIUM, chromiumSandbox: false, args });
});
after(() => browser.close());

/** A page that has loaded, and what went wrong in it. */
async function opened(t, server, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 800 }, ...options });
  const page = await context.newPage();
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  // Where the index cannot be had by itself, that request is given up.
  page.on("requestfailed", (request) => request.headers().range || wrong.push(`${request.url()} failed`));
  page.on("request", (request) => {
    if (!/^(http:\/\/127\.0\.0\.1:|data:|blob:)/.test(request.url())) wrong.push(`${request.url()} is on another host`);
  });
  t.after(() => context.close());
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  return { page, wrong };
}

const ready = (page) => page.waitForSelector("html[data-ready]", { state: "attached", timeout: 60_000 });

async function served(t, options) {
  const server = await serve(options);
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return server;
}

/** Draws strokes, each a list of points in parts of the canvas. */
async function draw(page, strokes) {
  const canvas = page.locator("#drawing");
  await canvas.scrollIntoViewIfNeeded();
  const box = await canvas.boundingBox();
  for (const [first, ...rest] of strokes) {
    const at = ([x, y]) => [box.x + x * box.width, box.y + y * box.height];
    await page.mouse.move(...at(first));
    await page.mouse.down();
    for (const point of rest) await page.mouse.move(...at(point), { steps: 8 });
    await page.mouse.up();
  }
}

const around = (x, y, rx, ry, from, to) =>
  Array.from({ length: 13 }, (_, k) => {
    const angle = ((from + ((to - from) * k) / 12) * Math.PI) / 180;
    return [x + rx * Math.cos(angle), y + ry * Math.sin(angle)];
  });
const DRAWN = {
  0: [around(0.5, 0.5, 0.22, 0.32, -90, 270)],
  1: [[[0.55, 0.15], [0.47, 0.85]]],
  3: [[...around(0.48, 0.32, 0.18, 0.16, -150, 90), ...around(0.48, 0.66, 0.21, 0.19, -90, 150)]],
  7: [[[0.25, 0.2], [0.72, 0.2], [0.45, 0.85]]],
};

for (const [device, options] of [
  ["desktop", {}],
  ["phone", { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true }],
]) {
  test(`digits are recognised on a ${device}`, async (t) => {
    const { page, wrong } = await opened(t, await served(t), options);
    await ready(page);
    for (const [digit, strokes] of Object.entries(DRAWN)) {
      await page.click("#clear");
      await draw(page, strokes);
      await page.waitForFunction((text) => document.querySelector("#digit").textContent === text, `It looks like a ${digit}.`, {
        timeout: 5000,
      });
    }
    assert.match(await page.textContent("#lenet .status"), /266,610 weights in 1\d\d kB, 15 % of its ONNX file \(1\.1 MB\)/);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    assert.ok(overflow <= 0, `the page is ${overflow} pixels wider than the window`);
    if (SHOTS) await page.screenshot({ path: `${SHOTS}/${device}.png`, fullPage: true });
    assert.deepEqual(wrong, []);
  });
}

test("without range requests the page works too", async (t) => {
  const { page, wrong } = await opened(t, await served(t, { ranges: false }));
  await ready(page);
  await draw(page, DRAWN[7]);
  await page.waitForFunction(() => document.querySelector("#digit").textContent === "It looks like a 7.", undefined, {
    timeout: 5000,
  });
  assert.deepEqual(wrong, []);
});

test("a damaged file gives a message", async (t) => {
  const server = await served(t);
  const { page } = await opened(t, server);
  await page.route("**/lenet.dcb", async (route) => {
    const response = await route.fetch();
    const body = await response.body();
    body[5000] ^= 1;
    await route.fulfill({ response, body });
  });
  await page.reload();
  await ready(page);
  assert.match(await page.textContent("#lenet .status"), /cannot be loaded: tensor "?'?fc1\.weight'?"? is damaged/);
});

test("an image is recognised", { skip: hasImages ? false : "build.py was run without --efficientnet" }, async (t) => {
  const { page, wrong } = await opened(t, await served(t));
  await ready(page);
  const drawn = await page.evaluate(async () => {
    // A clock on a wall.
    const canvas = new OffscreenCanvas(400, 320);
    const pen = canvas.getContext("2d");
    const disc = (radius, colour) => {
      pen.fillStyle = colour;
      pen.beginPath();
      pen.arc(200, 160, radius, 0, 7);
      pen.fill();
    };
    pen.fillStyle = "#cfc6b8";
    pen.fillRect(0, 0, 400, 320);
    disc(130, "#3a2a1c");
    disc(116, "#fbfaf5");
    Object.assign(pen, { fillStyle: "#111", font: "26px serif", textAlign: "center", textBaseline: "middle", lineCap: "round" });
    for (let hour = 1; hour <= 12; hour++) {
      const angle = (hour * Math.PI) / 6;
      pen.fillText(hour, 200 + 94 * Math.sin(angle), 160 - 94 * Math.cos(angle));
    }
    for (const [angle, length, width] of [[0.9, 50, 9], [-1.1, 78, 6]]) {
      pen.lineWidth = width;
      pen.beginPath();
      pen.moveTo(200, 160);
      pen.lineTo(200 + length * Math.sin(angle), 160 - length * Math.cos(angle));
      pen.stroke();
    }
    return [...new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer())];
  });
  await page.setInputFiles("#file", { name: "drawn.png", mimeType: "image/png", buffer: Buffer.from(drawn) });
  await page.waitForFunction(() => /Recognised/.test(document.querySelector("#class").textContent), undefined, { timeout: 30_000 });
  assert.match(await page.textContent("#classes"), /^\s*(analog|wall) ?clock/i);
  if (SHOTS) await page.screenshot({ path: `${SHOTS}/image.png`, fullPage: true });
  await page.setInputFiles("#file", { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("no image") });
  await page.waitForFunction(() => /not an image/.test(document.querySelector("#class").textContent));
  assert.deepEqual(wrong, []);
});
