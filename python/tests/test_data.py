"""The extra `data` brings the packages of the image, and the local service has them in memory."""

from mainbox import Box


def test_a_script_can_use_pandas_and_return_a_picture() -> None:
    script = """
import matplotlib.pyplot as plt
import openpyxl
import pandas as pd
def main(rows):
    df = pd.DataFrame(rows)
    df.plot()
    df.to_excel("outputs/table.xlsx")
    return df.sum()
"""
    result = Box().run(script, [{"a": 1, "b": 2}, {"a": 3, "b": 4}])
    assert result.value == {"a": 4, "b": 6}
    assert sorted(result.files) == ["figure-1.png", "table.xlsx"]
    assert result.files["figure-1.png"].startswith(b"\x89PNG")
