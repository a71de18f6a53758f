"""The template of `report.html`. In a module and not in a data file, so that it cannot be missing from a package.

The policy in the head forbids scripts and everything from outside, should a name ever get past the escaping.
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of {{ examined }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1, h2, h3 { font-weight: 600; line-height: 1.2; }
h2 { border-top: 1px solid #ddd; margin-top: 2.5rem; padding-top: 1rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #e4e4e4; padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1px solid #888; }
.wide { overflow-x: auto; }
img { max-width: 100%; vertical-align: top; }
dl { display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; }
dt { color: #666; }
dd { margin: 0; overflow-wrap: anywhere; }
p.note { color: #666; }
</style>
</head>
<body>
{% macro table(content) %}
<div class="wide"><table>
<thead><tr>{% for head in content.heads %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in content.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% endmacro %}
{% macro picture(content) %}
<img alt="{{ content.title }}" src="data:image/png;base64,{{ content.data }}">
{% endmacro %}
<h1>Evaluation of {{ examined }}</h1>
<dl>
{% for name, value in about.items() %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>

<h2>Systems side by side</h2>
<p class="note">All systems on the same test videos. Brackets are bootstrap intervals by video.</p>
{{ picture(overview) }}
{{ table(systems) }}
{% if differences.rows %}
<h3>{{ examined }} minus the others</h3>
<p class="note">Paired by video. A star marks a gain whose interval lies above 0.</p>
{{ table(differences) }}
{% endif %}
{% if evidence %}
<h3>Evidence</h3>
<p>Shares of vision, audio and text behind a score, against what leaving each of them out does to it:
correlation {{ "%.3f"|format(evidence.correlation) }}, by rank {{ "%.3f"|format(evidence.rank_correlation) }};
the largest share is the modality that is missed most in {{ "%.0f"|format(100 * evidence.top_agreement) }} % of
{{ evidence.n_pairs }} pairs of video and label.</p>
{% endif %}
{% if seams %}
<h3>Seams</h3>
<p>Brier score of the steps where windows of a video overlap {{ "%.4f"|format(seams.at_seams) }}, of the others
{{ "%.4f"|format(seams.inside) }} ({{ seams.n_at_seams }} and {{ seams.n_inside }} pairs of step and label).</p>
{% endif %}

{% for section in sections %}
<h2>{{ section.name }}</h2>
<p>{{ section.summary }}.</p>
{% for content in section.pictures %}
{{ picture(content) }}
{% endfor %}
{% for title, content in section.tables %}
<h3>{{ title }}</h3>
{{ table(content) }}
{% endfor %}
{% endfor %}
</body>
</html>
"""
