"""How the pocket model is made: compose scenes, cache what is seen, train the chooser and the language model, pack.
Never imported by the rest."""
