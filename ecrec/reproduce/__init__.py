"""The evaluation behind ``ecrec reproduce``: runs as data, raw lines, tables, plots, a summary of the claims."""
