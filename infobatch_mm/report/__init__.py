"""Reading what a run left behind, and the page that shows it."""
