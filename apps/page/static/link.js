// The WebSocket: says hello, comes back when it was lost, hands over what arrives.

const ROOM = "vrwkv-room"; // this window's conversation, kept over a reload
const FIRST_MS = 400, LONGEST_MS = 4000, FULL_MS = 8000;
const REPLACED = 4001, FULL = 4003;

export class Link {
  #on; #socket = null; #wait = FIRST_MS; #timer = 0; #failures = 0; #boot = "";

  // `on` has: message(data), picture(blob), welcome(data, how), state(name, text).
  constructor(on) {
    this.#on = on;
    addEventListener("online", () => this.connect());
  }

  get room() { return sessionStorage.getItem(ROOM) ?? ""; }
  get open() { return this.#socket?.readyState === WebSocket.OPEN; }
  get backlog() { return this.#socket?.bufferedAmount ?? 0; }

  connect() {
    if (this.#socket && this.#socket.readyState <= WebSocket.OPEN) return;
    clearTimeout(this.#timer);
    const address = new URL("socket", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.search = address.hash = "";
    const socket = this.#socket = new WebSocket(address);
    socket.binaryType = "blob";
    socket.onopen = () => this.send({ type: "hello", room: this.room });
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.#message(JSON.parse(data)) : this.#on.picture(data));
    socket.onclose = ({ code }) => this.#lost(code);
  }

  // Return whether it was sent: without a connection nothing waits, so that nothing old is said later.
  send(message) {
    if (!this.open) return false;
    this.#socket.send(message instanceof Blob ? message : JSON.stringify(message));
    return true;
  }

  #message(data) {
    if (data.type === "refused") {
      this.#on.state("full", `${data.found}. ${data.hint}. Trying again on its own.`);
    } else if (data.type === "welcome") {
      this.#welcome(data);
    } else {
      this.#on.message(data);
    }
  }

  #welcome(data) {
    const had = this.room, here = this.#boot !== "";
    let how = "new";
    if (data.known) how = here ? "again" : "resumed";
    else if (here) how = data.boot === this.#boot ? "forgotten" : "restarted";
    else if (had) how = "lost";
    this.#boot = data.boot;
    this.#wait = FIRST_MS;
    this.#failures = 0;
    sessionStorage.setItem(ROOM, data.room);
    this.#on.state("on", "Connected");
    this.#on.welcome(data, how);
  }

  async #lost(code) {
    if (code === REPLACED) {
      this.#on.state("elsewhere", "This conversation was opened in another window. Reload to have it here.");
      return;
    }
    this.#failures += 1;
    const wait = code === FULL ? FULL_MS : this.#wait;
    this.#wait = Math.min(this.#wait * 1.7, LONGEST_MS);
    this.#timer = setTimeout(() => this.connect(), wait);
    if (code === FULL) return;
    this.#on.state("lost", "The connection to the server is lost. Trying again on its own; what you read stays here.");
    if (this.#failures > 2 && await refused()) {
      this.#on.state("token", "The server does not know this browser any more. Open the address that it printed when it was started.");
    }
  }
}

// Whether a server answers, but not to us.
async function refused() {
  try {
    const answer = await fetch("ready", { cache: "no-store" });
    return answer.status === 401 || answer.status === 403;
  } catch {
    return false;
  }
}
