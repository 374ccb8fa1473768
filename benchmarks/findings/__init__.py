"""The recipes of docs/findings: each module makes a page's figures anew."""
