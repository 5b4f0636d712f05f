"""The whole: real gearmand, real workers, the controller as a process of its own."""
