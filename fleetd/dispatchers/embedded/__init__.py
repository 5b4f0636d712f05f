"""The embedded dispatcher: fleetd's own Gearman server, for a laptop, a test or one small machine.

`queue` decides (pure: events in, packets out), `commands` answers the text commands, `journal` keeps background jobs
on disk, `server` moves the bytes, `main` is the command line. Standard library only. docs/dispatcher.md tells when it
is enough.
"""
