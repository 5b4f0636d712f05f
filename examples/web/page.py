"""What both pages show: a form, and a page that waits for one job. Its address says which: no server keeps it."""

import base64
import json

from fleetd.client import JobHandle

KEEP_S = 3600.0
FUNCTION = "count_words"
FORM = """<!doctype html>
<meta charset="utf-8">
<title>Count words</title>
<form method="post" action="/" accept-charset="utf-8">
  <textarea name="text" rows="8" cols="60" required></textarea>
  <button>Count</button>
</form>
"""
WAITING = """<!doctype html>
<meta charset="utf-8">
<title>Counting</title>
<p>Job <code id="job">%(unique)s</code>: <b id="state">submitted</b>
<progress id="bar" value="0" max="1"></progress></p>
<button id="cancel">Cancel</button>
<pre id="result"></pre>
<script>
const at = %(at)r;
async function show(state) {
  document.getElementById("state").textContent = state.name + (state.reason ? ": " + state.reason : "");
  if (state.total) Object.assign(document.getElementById("bar"), {value: state.done, max: state.total});
  if (state.name !== "done") return;
  document.getElementById("bar").value = document.getElementById("bar").max;
  document.getElementById("result").textContent = await (await fetch(at + "/result")).text();
}
document.getElementById("cancel").onclick = () => fetch(at + "/cancel", {method: "POST"});
%(listen)s
</script>
"""
# Asked again and again: any server can answer that, and one that waits for nothing holds no thread.
POLL = """
async function poll() {
  const state = await (await fetch(at + "/state")).json();
  await show(state);
  if (!state.over) setTimeout(poll, 200);
}
poll();"""
# Told: one request that stays open, for servers to which an open connection costs little.
LISTEN = """
const events = new EventSource(at + "/events");
events.addEventListener("state", async (event) => {
  const state = JSON.parse(event.data);
  if (state.over) events.close();
  await show(state);
});"""


def waiting(path: str, job: JobHandle, listen: str) -> bytes:
    """Return the page that waits for a job."""
    return (WAITING % {"unique": job.unique, "at": path, "listen": listen}).encode()


def path_of(job: JobHandle) -> str:
    """Return the path of a job's page: all that is needed to find the job again, also by another web process."""
    name = json.dumps([job.server, job.handle, job.unique]).encode()
    return f"/jobs/{base64.urlsafe_b64encode(name).decode()}"


def job_of(path: str) -> tuple[JobHandle, str, str] | None:
    """Return the job of a path, its page's path, and what is asked of it ("" for the page); None for another path."""
    words = path.split("/")
    if len(words) not in (3, 4) or words[:2] != ["", "jobs"]:
        return None
    try:
        server, handle, unique = json.loads(base64.b64decode(words[2], b"-_", validate=True))
    except (ValueError, TypeError):
        return None
    return JobHandle(str(server), str(handle), str(unique), FUNCTION), "/".join(words[:3]), "".join(words[3:])
