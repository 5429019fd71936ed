"""Models from pods that have them: serving what a cache holds, and asking others for it. Off unless switched on."""
