// The console in a real browser: Debian's Chromium, driven by playwright-core, looks at a demo's pages.
//
//   node .ci/interop/console.mjs MODULES --fleet BINARY --out FOLDER
//
// MODULES holds playwright-core and axe-core (npm install --prefix). Logs in by the demo's link, watches a node go offline
// and return without a reload and takes care of its alert, runs a command and reads its output, gives things names that are meant to do harm, walks
// by keyboard, switches the theme. No page may write an error to the browser's console, load anything from another host,
// be wider than a phone, or have a serious fault for axe. Screenshots go to FOLDER/console/. Bounded in time, loopback.
import { execFileSync, spawn } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";

const { values: options, positionals: [modules] } = parseArgs({
  allowPositionals: true,
  options: { fleet: { type: "string" }, out: { type: "string" }, chromium: { type: "string", default: "/usr/bin/chromium" } },
});
const require = createRequire(path.resolve(modules, "node_modules/"));
const { chromium } = require("playwright-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const shots = path.join(options.out, "console");
fs.mkdirSync(shots, { recursive: true });

// Longest wait for anything that the page is to show by itself, in milliseconds.
const PATIENCE = 90_000;
const HOSTILE = ["<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "\u202egnihton\u202d \u05d0\u05d1\u05d2"];
const faults = [];
const fault = (text) => { faults.push(text); console.log(`FAULT ${text}`); };

async function until(what, look) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

// A demo of three nodes in a folder of its own.
async function demo() {
  const data = fs.mkdtempSync(path.join(os.tmpdir(), "fleet-console-"));
  const any = "127.0.0.1:0";
  const args = ["demo", "--nodes", "3", "--data", data, "--http", any, "--mqtt", any, "--mqtts", any, "--node-https", any];
  const child = spawn(options.fleet, args, { stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  child.stdout.on("data", (text) => { said += text; });
  const ended = new Promise((resolve) => child.on("exit", resolve));
  const link = await until("the demo says where it is", () => {
    if (child.exitCode !== null) throw new Error(`the demo ended: ${said}`);
    return /console +(http\S+)/.exec(said)?.[1];
  });
  const token = fs.readFileSync(path.join(data, "access/admin"), "utf8").split("\n")[1];
  const edge = await until("the edge APIs are told", () => /demo-1 +edge API (http[^\s,]+)/.exec(said)?.[1]);
  const stop = async () => {
    child.kill("SIGINT");
    await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 20_000))]);
    child.kill("SIGKILL");
    fs.rmSync(data, { recursive: true, force: true });
  };
  return { data, link, token, edge, base: new URL(link).origin, stop };
}

async function ask(hub, method, at, body) {
  const answer = await fetch(new URL(at, hub.base), {
    method,
    headers: { authorization: `Bearer ${hub.token}`, "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  return answer.status;
}

// A page whose errors are faults, and which speaks to the hub alone.
async function watched(context, hub) {
  const page = await context.newPage();
  page.on("console", (message) => {
    if (message.type() === "error" && !page.expectsRefusal) fault(`${page.url()}: console: ${message.text()}`);
  });
  page.on("pageerror", (error) => fault(`${page.url()}: ${error.message}`));
  page.on("dialog", (dialog) => { fault(`${page.url()}: a dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== hub.base) fault(`${page.url()}: asks ${request.url()}`);
  });
  return page;
}

async function judge(page, name) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  for (const { id, impact, help, nodes } of violations) {
    const where = nodes.slice(0, 3).map((node) => node.target.join(" ")).join(", ");
    const text = `${name}: axe: ${impact}: ${id}: ${help} (${nodes.length} times: ${where})`;
    if (impact === "serious" || impact === "critical") fault(text);
    else console.log(`note  ${text}`);
  }
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  if (wide > 0) fault(`${name}: ${wide} pixels wider than the screen`);
  await page.screenshot({ path: path.join(shots, `${name}.png`), fullPage: true });
}

const state = (page, node) => page.locator(`#node-${node} .state`).first().textContent();

// Somebody takes care of the alert that a node is gone, and it is over when the node is back.
async function alert(context, hub) {
  const page = await watched(context, hub);
  await page.goto("/alerts");
  const row = page.locator("#list tr", { hasText: "demo-2" }).first();
  await row.locator(".state", { hasText: "firing" }).waitFor({ timeout: PATIENCE });
  await judge(page, "alerts");
  await row.getByRole("button", { name: /^Acknowledge/ }).click();
  await page.locator("#list tr", { hasText: "demo-2" }).getByText("taken care of by").waitFor();
  await judge(page, "alerts-acknowledged");
  return page;
}

async function comesAndGoes(context, page, hub) {
  await page.evaluate(() => { window.same = true; });
  await until("demo-2 is online", async () => await state(page, "demo-2") === "online");
  const offline = path.join(hub.data, "nodes/demo-2/offline");
  fs.writeFileSync(offline, "");
  await until("demo-2 is shown as gone", async () => await state(page, "demo-2") === "offline");
  await page.locator("#tiles .tile", { hasText: "offline" }).locator("b", { hasText: /^1$/ }).waitFor();
  await page.locator("#changes li", { hasText: "demo-2" }).first().waitFor();
  await judge(page, "fleet-one-offline");
  const alerts = await alert(context, hub);
  fs.rmSync(offline);
  await until("demo-2 is shown as back", async () => await state(page, "demo-2") === "online");
  if (!await page.evaluate(() => window.same)) fault("the page was loaded again meanwhile");
  await until("the alert is over", async () => await alerts.locator("#list tr", { hasText: "demo-2" }).count() === 0);
  await alerts.close();
  console.log("ok    a node went and came back on an open page, and its alert with it");
}

async function command(page) {
  await page.getByRole("link", { name: "Run a command on all" }).click();
  await page.getByRole("heading", { name: "It is for 3 nodes" }).waitFor();
  await page.getByLabel("Program and arguments").fill("uptime");
  await judge(page, "command-new");
  await page.getByRole("button", { name: "Send to the ticked nodes" }).click();
  await page.locator("#head .state", { hasText: "3 succeeded" }).waitFor({ timeout: PATIENCE });
  await page.locator("#output-demo-1 summary").click();
  await page.locator("#output-demo-1 pre", { hasText: "load average" }).waitFor();
  await judge(page, "command");
  await page.goto("/commands");
  await page.locator("#list tbody tr").first().waitFor();
  await judge(page, "commands");
  console.log("ok    a command ran on three nodes and told its output");
}

async function node(page, hub) {
  const now = Date.now();
  const samples = Array.from({ length: 60 }, (_, n) => n)
    .filter((n) => n < 20 || n > 30)
    .map((n) => ({ metric: "temperature", value: 20 + 3 * Math.sin(n / 6), unit: "Cel", time_ms: now - (60 - n) * 12_000 }));
  await fetch(`${hub.edge}/api/v1/telemetry`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ device: "dht22", samples }),
  });
  await page.goto("/nodes/demo-1?range=15m");
  await page.locator("#charts figure", { hasText: "temperature" }).waitFor({ timeout: PATIENCE });
  await page.locator("#device-dht22").waitFor({ timeout: PATIENCE });
  await judge(page, "node");
  console.log("ok    a node's page shows its samples and its device");
}

async function hostile(page, hub) {
  for (const name of HOSTILE) {
    const told = await ask(hub, "PATCH", "/api/v1/nodes/demo-3", { name });
    if (told !== 200 && told !== 422) fault(`a name is answered ${told}`);
    await fetch(`${hub.edge}/api/v1/events`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ kind: "note", severity: "warning", message: name.repeat(80).slice(0, 3_000) }),
    });
  }
  await ask(hub, "PATCH", "/api/v1/nodes/demo-3", { name: HOSTILE[0], site: HOSTILE[1] });
  await page.goto("/");
  await page.getByText(HOSTILE[0]).first().waitFor();
  if (await page.locator("main script, main img").count()) fault("a name became markup");
  await judge(page, "hostile");
  await page.goto("/nodes/demo-1");
  await page.locator("#events li").nth(2).waitFor({ timeout: PATIENCE });
  if (await page.locator("main script, main img").count()) fault("a message became markup");
  await judge(page, "hostile-node");
  await ask(hub, "PATCH", "/api/v1/nodes/demo-3", { name: null, site: null });
  console.log("ok    names that mean harm are text");
}

async function keyboard(page) {
  await page.goto("/");
  await page.keyboard.press("Tab");
  if (await page.evaluate(() => document.activeElement.className) !== "skip") fault("the first stop is not the way past the bar");
  await page.keyboard.press("/");
  if (await page.evaluate(() => document.activeElement.name) !== "q") fault("/ does not lead to the search");
  await page.keyboard.type("demo-2");
  await page.keyboard.press("Enter");
  await until("the search is done", async () => await page.locator("tr[id^=node-]").count() === 1);
  const before = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.locator("#theme").click();
  const after = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.reload();
  if (before === after || await page.evaluate(() => getComputedStyle(document.body).backgroundColor) !== after) {
    fault("the theme does not switch, or is forgotten");
  }
  await page.locator("#theme").click();
  console.log("ok    the keyboard and the theme");
}

async function door(page, hub) {
  await page.goto("/");
  await page.getByRole("button", { name: "Log out" }).click();
  await page.waitForURL("**/login");
  await judge(page, "login");
  page.expectsRefusal = true;
  await page.getByLabel("API token").fill("fleet_wrong");
  await page.getByRole("button", { name: "Log in" }).click();
  await page.locator("[role=alert]").waitFor();
  page.expectsRefusal = false;
  await page.getByLabel("API token").fill(hub.token);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.waitForURL(`${hub.base}/`);
  console.log("ok    out by the button, in by the token");
}

async function looks(browser, hub, cookies) {
  const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
  const kinds = { dark: { colorScheme: "dark" }, phone, "phone-dark": { ...phone, colorScheme: "dark" } };
  for (const [kind, settings] of Object.entries(kinds)) {
    const context = await browser.newContext({ baseURL: hub.base, ...settings });
    await context.addCookies(cookies);
    const page = await watched(context, hub);
    for (const [name, at] of Object.entries(PAGES)) {
      await page.goto(at);
      await page.locator("#pulse[data-state=on], body:not([data-live^='/'])").first().waitFor();
      await judge(page, `${name}-${kind}`);
    }
    await context.close();
  }
  console.log("ok    every page in the dark and on a phone");
}

// A skill goes to every node in waves on an open page, and its broken next version stops at the first.
async function rollout(page, hub) {
  const cli = (...words) => execFileSync(options.fleet, [...words, "--data", hub.data], { stdio: ["ignore", "pipe", "inherit"], timeout: 60_000 });
  const folder = path.join(hub.data, "greeter");
  fs.mkdirSync(folder);
  fs.writeFileSync(path.join(folder, "skill.toml"), "[health]\ncommand = [\"./greet\"]\n");
  const release = (version, script) => {
    fs.writeFileSync(path.join(folder, "greet"), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    const archive = path.join(hub.data, `greeter-${version}.tar`);
    execFileSync("tar", ["-C", folder, "-cf", archive, "."]);
    cli("artifact", "push", archive, "--name", "greeter", "--version", version, "--kind", "skill");
    cli("release", "sign", `greeter@${version}`);
    cli("rollout", "create", `greeter@${version}`, "--all", "--waves", "1,100%", "--soak", "2s", "--probation", "3s", "--max-failures", "0%", "--on-failure", "rollback");
  };
  await page.goto("/rollouts");
  await page.evaluate(() => { window.same = true; });
  release("1.0.0", "echo hello");
  await page.locator("#list tr", { hasText: "greeter@1.0.0" }).locator(".state", { hasText: /^done$/ }).waitFor({ timeout: PATIENCE });
  if (!await page.evaluate(() => window.same)) fault("the page was loaded again meanwhile");
  release("1.1.0", "echo no sensor; exit 1");
  await page.goto("/rollouts/greeter-1.1.0-1");
  await page.locator("#head .state", { hasText: /^rolled back$/ }).first().waitFor({ timeout: PATIENCE });
  await page.locator("#list tr", { hasText: "no sensor" }).locator(".state", { hasText: "rolled back" }).waitFor();
  await judge(page, "rollout-rolled-back");
  await page.goto("/rollouts/greeter-1.0.0-1");
  await judge(page, "rollout");
  console.log("ok    a rollout was followed to its end, and one that stopped itself");
}

const PAGES = {
  fleet: "/", node: "/nodes/demo-1?range=15m", alerts: "/alerts?state=resolved", commands: "/commands", rollouts: "/rollouts",
  rollout: "/rollouts/greeter-1.1.0-1",
  "command-new": "/commands/new?all=1", access: "/access", audit: "/audit",
};

const hub = await demo();
let browser;
try {
  // Without these it looks for hosts of its maker.
  const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"];
  browser = await chromium.launch({ executablePath: options.chromium, args: quiet });
  const context = await browser.newContext({ baseURL: hub.base, viewport: { width: 1280, height: 900 } });
  const page = await watched(context, hub);
  await page.goto(hub.link);
  await page.waitForURL(`${hub.base}/`);
  await page.locator("#pulse[data-state=on]").waitFor();
  await comesAndGoes(context, page, hub);
  await command(page);
  await node(page, hub);
  await rollout(page, hub);
  await page.goto("/");
  await judge(page, "fleet");
  await hostile(page, hub);
  await keyboard(page);
  await looks(browser, hub, await context.cookies());
  await door(page, hub);
} catch (error) {
  fault(String(error.stack || error));
} finally {
  await browser?.close();
  await hub.stop();
}
console.log(faults.length ? `console: ${faults.length} faults` : "console: ok");
process.exit(faults.length ? 1 : 0);
