// Serves dist/ on this machine: node serve.js [port]. Any static server does; this one answers range requests, with which a
// network is decoded while it is downloaded.

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const DIST = fileURLToPath(new URL("dist", import.meta.url));
const TYPES = {
  ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css",
  ".json": "application/json", ".wasm": "application/wasm",
};

/** Starts a server; `rate` is in bytes per second, for tests of slow connections. */
export async function serve({ port = 0, folder = DIST, ranges = true, rate = Infinity } = {}) {
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
    const file = join(folder, path.endsWith("/") ? `${path}index.html` : path);
    const found = await stat(file).catch(() => undefined);
    if (!found?.isFile()) {
      response.writeHead(404).end("not found");
      return;
    }
    const headers = { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream", "Cache-Control": "no-cache" };
    const match = ranges && /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
    const [start, end] = match ? [Number(match[1]), Number(match[2] || found.size - 1)] : [0, found.size - 1];
    if (match) headers["Content-Range"] = `bytes ${start}-${end}/${found.size}`;
    response.writeHead(match ? 206 : 200, { ...headers, "Content-Length": end - start + 1 });
    for await (const piece of createReadStream(file, { start, end: Math.max(end, 0) })) {
      response.write(piece);
      if (rate < Infinity) await new Promise((resolve) => setTimeout(resolve, (1000 * piece.length) / rate));
    }
    response.end();
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return server;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const server = await serve({ port: Number(process.argv[2] ?? 8000) });
  console.log(`http://127.0.0.1:${server.address().port}/`);
}
