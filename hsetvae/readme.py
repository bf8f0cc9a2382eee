"""Sections of the READMEs that are written from records, in the language of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from .config import UserError
from .files import write_atomically

# The claims of the crossed factors; then what verdicts, effects, heads and data are made of, in the order of
# replacement.  All other claims stay as they were declared.
CHINESE = {
    r"^A KL weight of 0\.1 instead of 0\.5 relieves posterior collapse$": "KL 权重取 0.1 而不是 0.5，可缓解后验坍缩",
    r"^A learned position with a time encoder instead of RoPE gives h more of the history$":
        "用带时间编码器的可学习位置代替 RoPE，h 得到更多历史",
    r"^Clipping the gradient's norm at 0\.5 instead of its values at 1 steadies training$":
        "把梯度的范数裁剪到 0.5，而不是把各分量裁剪到 1，训练更平稳",
    r"^Attention by h·z instead of the mean pools h better for the outcome$":
        "为预测结局汇聚 h，用 h·z 的注意力比取均值更好",
    r"undecided at n=(\d+)": r"n=\1 时未定",
    r"undecided \(closer to the bound than matters\)": "未定（与界限之差小到无关紧要）",
    r"undecided": "未定",
    r"could have seen nothing; ": "看不出任何效应；",
    r"could have seen (\S+); ": r"能看出的最小效应为 \1；",
    r"could have seen nothing\)": "看不出任何效应)",
    r"could have seen (\S+)\)": r"能看出的最小效应为 \1)",
    r"no pair differs\)": "没有一对不同)",
    r"all pairs differ by the same\)": "每对之差相同)",
    r"more than (\d+) replicates would show (\S+)\)": r"要看出 \2 需要 \1 次以上的重复)",
    r"(\d+) replicates would show (\S+)\)": r"要看出 \2 需要 \1 次重复)",
    r"no pair differs; (\d+) such replicates would refute it\)": r"没有一对不同；\1 次这样的重复才能否定)",
    r"all pairs differ by the same; (\d+) such replicates would decide it\)": r"每对之差相同；\1 次这样的重复可裁定)",
    r"not evaluable: no room to move": "无法评判：没有变动的余地",
    r" \(the reference is at (\S+)\)": r"（参照为 \1）",
    r" on these splits only": "（仅限这些划分）",
    r"supported, below the size of interest": "成立，但小于有意义的大小",
    r"supported": "成立",
    r"refuted: harmful": "被否定：有害",
    r"refuted: negligible": "被否定：可忽略",
    r"refuted: the control does not hold": "被否定：对照不成立",
    r"refuted": "被否定",
    r"not evaluable: an instrument, no arm": "无法评判：是仪器，不是实验臂",
    r"not evaluable: (\S+) of the runs failed": r"无法评判：\1 的运行失败",
    r"not evaluable at n=(\d+)": r"n=\1 时无法评判",
    r"not evaluable": "无法评判",
    r"no arm can judge": "没有实验臂可以评判",
    r"not yet run": "尚未运行",
    r"\(wanted every number of the reference, to six digits\)": "（应为参照的每一个数，六位数字）",
    r"\(wanted (\S+) from (\S+) to (\S+)\)": r"（应为 \1 在 \2 到 \3 之间）",
    r"measures that differ: (\d+)": r"不同的指标：\1",
    r" beyond (\S+)": r"，界限 \1",
    r"^simulated, (\d+) stays": r"模拟，\1 次住院",
    r"On (\S+): ": r"在 \1 上：",
    r"^(\S+) minus boosting \[95 %\]$": r"\1 减梯度提升 [95 %]",
    r"^(\S+) \(boosting there\)$": r"\1（梯度提升，同样的划分）",
    r"^logistic regression$": "逻辑回归", r"^boosting$": "梯度提升", r"^boosting, tuned$": "梯度提升（调参）",
    r"^two boostings, averaged$": "两个梯度提升的平均", r"^five boostings, averaged$": "五个梯度提升的平均",
    r"^baseline$": "BASELINE 预设", r"^improved$": "IMPROVED 预设", r"^recommended$": "RECOMMENDED 预设",
    r"^recommended and boosting, averaged$": "RECOMMENDED 与梯度提升的平均",
    r"^who$": "模型", r"^splits$": "划分数",
    r"^row$": "条目", r"^claim$": "主张", r"^verdict$": "结论", r"^effect \[95 %\]$": "效应 [95 %]", r"^data$": "数据",
}  # fmt: skip


def chinese(text: str) -> str:
    """A verdict, an effect, a head, a tally or the claim of a crossed factor in Chinese."""
    for english, words in CHINESE.items():
        text = re.sub(english, words, text)
    return text


READMES: dict[str, Callable[[str], str]] = {"README.md": str, "README.zh.md": chinese}  # file -> its language


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a README."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "/") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: written by `hsetvae study publish` -->", f"<!-- end of {name} -->"


def with_section(text: str, name: str, section: str) -> str:
    """The text with everything between the marks of a section replaced."""
    first, last = marks(name)
    before, start, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not (start and end):
        raise UserError(f"the README lacks the marks {first} and {last}, between which the {name} are written")
    return f"{before}{first}\n\n{section}\n\n{last}{after}"


def renewed(folder: Path, sections: Callable[[Callable[[str], str]], dict[str, str]]) -> list[Path]:
    """Write the sections, made for a language, into those READMES of a folder that have their first mark -> these."""
    written = []
    for name, language in READMES.items():
        readme = folder / name
        text = readme.read_text() if readme.is_file() else ""
        marked = {section: content for section, content in sections(language).items() if marks(section)[0] in text}
        for section, content in marked.items():
            text = with_section(text, section, content)
        if marked:
            write_atomically(readme, text.encode())
            written.append(readme)
    return written
