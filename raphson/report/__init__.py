"""Results as tables and pages for people; no computation."""

from ._summary import Summary as Summary
