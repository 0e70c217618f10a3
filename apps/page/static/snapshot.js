// Conversations as files: the room's key goes into a header, so that it stays out of addresses and logs.

const ADDRESS = "snapshot";

// Download what a tab has seen and said.
export async function saveState(room, tab) {
  const answer = await sent({ headers: { "X-Room": room, "X-Tab": String(tab.tab) } });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `${tab.name.toLowerCase().replaceAll(" ", "-")}-${tab.tokens}-tokens.state`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Open a tab on a downloaded file; the server tells the page over the WebSocket.
export async function loadState(room, input) {
  const file = input.files[0];
  input.value = "";
  if (file) await sent({ method: "POST", body: file, headers: { "X-Room": room, "Content-Type": "application/octet-stream" } });
}

async function sent(options) {
  let answer;
  try {
    answer = await fetch(ADDRESS, { cache: "no-store", ...options });
  } catch {
    throw new Error("the server cannot be reached: try again when the page is connected");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  throw new Error(said?.error?.message ?? `the server refused it (${answer.status})`);
}
