// What the Node peers share; see probe.py. A peer calls main({install, client, bulk, one, work}).
import fs from "node:fs";
export const DSN = process.env.PEER_DSN, CONC = +(process.env.PEER_CONC || 10);
const LOG = process.env.PEER_LOG, MODE = process.env.PEER_MODE || "count";
const TOTAL = +(process.env.PEER_N || 0);
const mono = () => Number(process.hrtime.bigint()) / 1e9;
const sleep = (ms) => new Promise((r) => setTimeout(r, ms));
let seen = 0;
const note = (s) => fs.appendFileSync(LOG, s + "\n");
export function hit(n) {
  if (MODE === "log") return note(`${n} ${mono().toFixed(6)}`);
  if (seen === 0) note(`first ${mono().toFixed(6)}`);
  if (++seen === TOTAL) note(`last ${mono().toFixed(6)}`);
}
export async function handler(n) {
  hit(n);
}
async function warm() {
  for (let i = 0; i < 1200; i++) {
    if (fs.existsSync(LOG) && /^-1 /m.test(fs.readFileSync(LOG, "utf8"))) return;
    await sleep(50);
  }
  throw new Error("the worker never ran the warm-up job");
}
export async function main(p) {
  const [cmd, ...a] = process.argv.slice(2);
  let out = {};
  if (cmd === "install") await p.install(DSN);
  else if (cmd === "work") return p.work(DSN, handler, CONC);
  else {
    const c = await p.client(DSN);
    if (cmd === "bulk") {
      const ns = Array.from({ length: +a[0] }, (_, i) => i), t = mono();
      await p.bulk(c, ns);
      out = { s: mono() - t };
    } else if (cmd === "single") {
      await p.one(c, 1e6);
      const t = mono();
      for (let i = 0; i < +a[0]; i++) await p.one(c, i);
      out = { s: mono() - t };
    } else if (cmd === "pickup") {
      await p.one(c, -1);
      await warm();
      await sleep(1500);
      const t0 = mono(), starts = [];
      for (let i = 0; i < +a[0]; i++) {
        const w = t0 + (i * +a[1]) / 1000 - mono();
        if (w > 0) await sleep(w * 1000);
        starts.push(mono());
        await p.one(c, i);
      }
      out = { starts };
    }
  }
  process.stdout.write(JSON.stringify(out) + "\n", () => process.exit(0));
}
