"""Worker code by digest: built, signed, kept on the controller's shelf, fetched, verified and staged on the nodes.

Promises: nothing is run or written from a bundle before all of it is verified; a fault is one line that says which; the
standard library is enough to import anything here. What a step needs beyond it is loaded by that step, which says how
to install it.
"""
