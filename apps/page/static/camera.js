// Where pictures come from: this device's camera, the robot's, or a picture file. One is shown at a time.

const QUALITY = 0.9; // of the JPEGs that are sent
const FRAME_MS = 200; // between two frames while the state watches
const WAITING_BYTES = 256 * 1024; // not yet sent: a slow network drops frames here

const $ = (id) => document.getElementById(id);

export class Cameras {
  #link; #changed; #stream = null; #still = null; #side = 512; #robot = ""; #waiting = false; #timer = 0;
  #stillSent = false; #begun = false;
  kind = "none"; // "page", "robot" or "none": what questions are about
  skipped = 0; // frames there was no time to send

  // `changed` is called when another camera is on.
  constructor(link, changed) {
    this.#link = link;
    this.#changed = changed;
    $("source").addEventListener("change", () => this.#choose($("source").value));
    $("start-camera").addEventListener("click", () => this.#choose("device"));
    $("open-picture").addEventListener("click", () => $("picture-file").click());
    $("picture-file").addEventListener("change", () => this.#openFile());
    navigator.mediaDevices?.addEventListener?.("devicechange", () => this.#list());
    document.addEventListener("visibilitychange", () => this.#wantPreview());
  }

  // Begin, or go on after a welcome.
  async welcome({ side, robot, model }) {
    this.#side = side;
    if (!model.pictures) {
      say("This model takes no pictures: ask it in words.");
      for (const id of ["source", "start-camera", "open-picture"]) $(id).disabled = true;
      return;
    }
    const first = !this.#begun;
    this.#begun = true;
    this.#robot = robot;
    this.#stillSent = false;
    if (this.kind === "robot" && !robot) this.#stop(); // another server: it has no camera of its own
    await this.#list();
    if (first && robot) await this.#choose("robot");
    else if (first && await allowed()) await this.#choose("device");
    this.#wantPreview();
  }

  // Send the newest picture, for a question; false if there is none. A still picture is sent once.
  async shoot() {
    if (this.kind !== "page") return this.kind === "robot";
    if (this.#still && this.#stillSent) return true;
    const blob = await this.#grab();
    if (!blob) return false;
    this.#stillSent = this.#still !== null;
    return this.#link.send(blob);
  }

  // Send frames from now on, or stop; called again and again with what is so.
  stream(on) {
    if (on && this.kind === "page") {
      if (!this.#timer) this.#waiting = false;
      this.#timer ||= setInterval(() => this.#frame(), FRAME_MS);
    } else {
      clearInterval(this.#timer);
      this.#timer = 0;
    }
  }

  // The server has the last frame.
  acknowledged() { this.#waiting = false; }

  // A picture of the robot's camera has come.
  async preview(blob) {
    if (this.kind !== "robot") return;
    try {
      draw($("canvas"), await createImageBitmap(blob));
    } catch { /* the next one may be whole */ }
    this.#wantPreview();
  }

  #wantPreview() {
    if (this.kind === "robot" && !document.hidden) this.#link.send({ type: "more" });
  }

  async #frame() {
    if (this.#waiting || this.#link.backlog > WAITING_BYTES) {
      this.skipped += 1;
      return;
    }
    this.#waiting = true;
    const blob = await this.#grab();
    if (!blob || !this.#link.send(blob)) this.#waiting = false;
  }

  #grab() {
    const video = $("video"), from = this.#still ?? video;
    const width = this.#still ? from.width : video.videoWidth, height = this.#still ? from.height : video.videoHeight;
    if (!width || !height) return null;
    const scale = Math.min(1, this.#side / Math.max(width, height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d", { alpha: false });
    pen.imageSmoothingQuality = "high";
    pen.drawImage(from, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
  }

  async #choose(value) {
    if (value === "file") {
      $("picture-file").click();
      this.#show();
      return;
    }
    this.#stop();
    if (value === "robot") {
      this.kind = "robot";
    } else if (value !== "none") {
      await this.#openDevice(value === "device" ? "" : value);
    }
    this.#show();
    this.#wantPreview();
    this.#changed();
  }

  async #openDevice(id) {
    if (!navigator.mediaDevices?.getUserMedia) {
      say("Browsers give a camera only to pages from this machine or over https. Tunnel the page "
        + `(ssh -L ${location.port || 80}:localhost:${location.port || 80} ROBOT, then open localhost), or open a picture.`);
      return;
    }
    const wish = id ? { deviceId: { exact: id } } : { facingMode: { ideal: "environment" } };
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: { ...wish, width: { ideal: 1280 } }, audio: false });
    } catch (error) {
      const reasons = {
        NotAllowedError: "The browser was not allowed to use the camera. Allow it beside the address, then try again.",
        NotFoundError: "This device has no camera.",
        NotReadableError: "The camera is used by another program.",
      };
      say(reasons[error.name] ?? `The camera cannot be used: ${error.message}`);
      return;
    }
    const video = $("video");
    video.srcObject = this.#stream;
    this.#stream.getVideoTracks()[0].addEventListener("ended", () => this.#unplugged());
    await video.play().catch(() => {});
    this.kind = "page";
    await this.#list();
  }

  async #openFile() {
    const file = $("picture-file").files[0];
    $("picture-file").value = "";
    if (!file) return;
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      this.#stop();
      say(`${file.name} is no picture that this browser can read.`);
      this.#show();
      return;
    }
    this.#stop();
    const scale = Math.min(1, 1280 / Math.max(bitmap.width, bitmap.height));
    draw($("canvas"), bitmap, scale);
    this.#still = $("canvas");
    this.#stillSent = false;
    this.kind = "page";
    this.#show();
    this.#changed();
  }

  #unplugged() {
    this.#stop();
    say("The camera was unplugged, or the browser took it back.");
    this.#show();
    this.#changed();
  }

  #stop() {
    this.stream(false);
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = this.#still = $("video").srcObject = null;
    this.kind = "none";
  }

  #show() {
    $("video").hidden = this.#stream === null;
    $("canvas").hidden = !(this.kind === "robot" || this.#still);
    $("no-camera").hidden = this.kind !== "none";
    $("canvas").setAttribute("aria-label", this.#still ? "The picture you opened" : `Live picture of ${this.#robot}`);
    const chosen = this.#stream?.getVideoTracks()[0]?.getSettings().deviceId;
    const select = $("source");
    select.value = this.kind === "robot" ? "robot" : this.#still ? "still" : chosen ?? "none";
    if (select.selectedIndex < 0) select.value = this.#stream ? "device" : "none";
  }

  async #list() {
    const devices = await navigator.mediaDevices?.enumerateDevices?.().catch(() => []) ?? [];
    const named = devices.filter((device) => device.kind === "videoinput" && device.deviceId && device.label);
    const options = [["none", "Off"]];
    if (this.#robot) options.push(["robot", `Robot: ${this.#robot}`]);
    if (named.length) options.push(...named.map((device) => [device.deviceId, device.label]));
    else options.push(["device", "This device's camera"]);
    options.push(["file", "Picture file …"]);
    const select = $("source"), chosen = select.value;
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    select.append(Object.assign(new Option("The picture you opened", "still"), { hidden: true }));
    select.value = chosen;
    this.#show();
  }
}

function say(text) {
  $("no-camera-text").textContent = text;
}

function draw(canvas, bitmap, scale = 1) {
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
}

async function allowed() {
  try {
    return (await navigator.permissions.query({ name: "camera" })).state === "granted";
  } catch {
    return false;
  }
}
