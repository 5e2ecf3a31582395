"""How memory is sent until little enough is left: bulk, dirty rounds, the verdict, pacing."""
