"""The confusion matrix as lines of text: all of it where it fits, else the pairs confused most.

confusion[i][j] counts the clouds of class i that the model called class j, as in the values of
`minipc eval --json`.
"""

from collections.abc import Sequence

MOST_PAIRS = 10


def class_lines(
    names: Sequence[str], confusion: Sequence[Sequence[int]], columns: int
) -> list[str]:
    """Return lines on each class that occurs, and on which classes were taken for which.

    names: of K classes; confusion: K rows of K counts; columns: how wide a line may be.  A class
    without a cloud has no line, but it has a column: a model may say it all the same.
    """
    width = max(map(len, names), default=0)
    occurring = [i for i, row in enumerate(confusion) if sum(row)]
    accuracy = {
        i: f"  {names[i]:{width}}  {100 * confusion[i][i] / sum(confusion[i]):6.1f} %"
        for i in occurring
    }
    if not occurring:
        return []
    largest = max(max(confusion[i]) for i in occurring)
    cell = 1 + max(len(str(largest)), len(str(len(names))))  # a blank before each
    place = len(str(len(names)))
    beside = 2 + place + cell * len(names)
    if len(accuracy[occurring[0]]) + beside > columns:
        return [*accuracy.values(), *_pairs(names, confusion)]
    heads = "".join(f"{i:{cell}}" for i in range(1, len(names) + 1))
    return [
        "rows: true class, columns: predicted class, by its number",
        f"{'':{len(accuracy[occurring[0]])}}  {'':{place}}{heads}",
        *(
            f"{line}  {i + 1:{place}}"
            + "".join(f"{count or '.':>{cell}}" for count in confusion[i])
            for i, line in accuracy.items()
        ),
    ]


def _pairs(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[str]:
    """Return lines on the pairs of classes that were confused most, the largest number first."""
    wrong = [
        (count, i, j)
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    if not wrong:
        return ["no class was taken for another"]
    wrong.sort(key=lambda each: (-each[0], *each[1:]))
    shown = wrong[:MOST_PAIRS]
    rest = sum(count for count, _, _ in wrong[MOST_PAIRS:])
    width = max(len(str(sum(confusion[i]))) for _, i, _ in shown)
    return [
        "confused most often:",
        *(
            f"  {count:{width}} of {sum(confusion[i]):{width}} {names[i]} said to be {names[j]}"
            for count, i, j in shown
        ),
        *([f"  {rest} more in {len(wrong) - MOST_PAIRS} other pairs"] if rest else []),
    ]
