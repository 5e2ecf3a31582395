/* Draws one dashboard with the components of Grafana's front end, wired to its file by hand: this is not Grafana. What
   Grafana's panels do around these components is here as far as our dashboards need it, and no further. */
import 'uplot/dist/uPlot.min.css';
import {
  EventBusSrv, FieldColorModeId, FieldConfigOptionsRegistry, FieldType, VizOrientation, applyFieldOverrides,
  createTheme, dateTime, getDisplayValueAlignmentFactors, getFieldDisplayValues, renderTextPanelMarkdown, toDataFrame,
} from '@grafana/data';
import {
  BigValue, GlobalStyles, PanelChrome, PanelContextProvider, ThemeContext, TimeSeries, VizRepeater,
} from '@grafana/ui';
import { flushSync } from 'react-dom';
import { createRoot } from 'react-dom/client';

const CELL = 30, GAP = 8, COLUMNS = 24, MARGIN = 16; // Grafana's grid, in pixels
/* What Grafana takes where a file says nothing. */
const LINES = {
  drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none',
  showPoints: 'auto', pointSize: 5, axisPlacement: 'auto', spanNulls: false, thresholdsStyle: { mode: 'off' },
  hideFrom: { viz: false, legend: false, tooltip: false },
};
const THRESHOLDS = { mode: 'absolute', steps: [{ value: null, color: 'green' }, { value: 80, color: 'red' }] };
const PLAIN = { timeZone: 'utc', replaceVariables: (text) => text };
/* uPlot's own object of each panel that has lines, by the panel's id, to be looked at from outside. */
window.plots = {};

/* The panel's series as data frames, each field with the panel's settings and overrides in it. */
function frames({ panel, answered, theme, colour }) {
  const data = answered.series[panel.id].map(({ name, labels, values }) => toDataFrame({ name, fields: [
    { name: 'Time', type: FieldType.time, config: { interval: answered.step * 1000 },
      values: values.map(([at]) => at * 1000) },
    { name: 'Value', type: FieldType.number, labels, config: name ? { displayNameFromDS: name } : {},
      values: values.map(([, text]) => Number(text.replace('Inf', 'Infinity'))) },
  ] }));
  const { defaults: given, overrides } = panel.fieldConfig;
  const thresholds = given.thresholds ?? THRESHOLDS;
  const steps = thresholds.steps.map((step) => ({ ...step, value: step.value ?? -Infinity }));
  const custom = { ...LINES, ...given.custom };
  const defaults = { color: { mode: colour }, ...given, thresholds: { ...thresholds, steps }, custom };
  const ids = [
    ...Object.keys(defaults).filter((key) => key !== 'custom'), ...Object.keys(custom).map((key) => `custom.${key}`),
    ...overrides.flatMap((each) => each.properties.map((property) => property.id)),
  ];
  const option = (id) => ({ id, name: id, path: id.replace('custom.', ''), isCustom: id.startsWith('custom.'),
    shouldApply: () => true, process: (value) => value, settings: {} });
  const fieldConfigRegistry = new FieldConfigOptionsRegistry(() => [...new Set(ids)].map(option));
  const fieldConfig = { defaults, overrides };
  const made = applyFieldOverrides({ data, fieldConfig, fieldConfigRegistry, theme, ...PLAIN });
  return { fieldConfig, data: made };
}

function Lines({ panel, answered, theme, width, height }) {
  const { data } = frames({ panel, answered, theme, colour: FieldColorModeId.PaletteClassic });
  const middle = { width, height, display: 'grid', placeItems: 'center' };
  if (!data.length) return <div style={middle}>{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>;
  const [from, to] = [answered.begin, answered.end].map((at) => dateTime(at * 1000));
  return <TimeSeries frames={data} structureRev={1} timeRange={{ from, to, raw: { from, to } }} timeZone="utc"
    width={width} height={height} legend={panel.options.legend} options={panel.options}>
    {(config) => { config.addHook('ready', (plot) => { window.plots[panel.id] = plot; }); return null; }}
  </TimeSeries>;
}

function Figure({ panel, answered, theme, width, height }) {
  const { data, fieldConfig } = frames({ panel, answered, theme, colour: FieldColorModeId.Thresholds });
  const { reduceOptions, orientation, wideLayout, ...look } = panel.options;
  const getValues = () => getFieldDisplayValues({ data, fieldConfig, reduceOptions, theme, ...PLAIN });
  return <VizRepeater getValues={getValues} source={data} width={width} height={height} renderCounter={1} autoGrid
    orientation={orientation ?? VizOrientation.Auto} getAlignmentFactors={getDisplayValueAlignmentFactors}
    renderValue={({ value, ...place }) =>
      <BigValue {...look} {...place} value={value.display} theme={theme} disableWideLayout={!wideLayout} />} />;
}

function Words({ panel, width, height }) {
  return <div style={{ width, height, overflow: 'auto' }} className="markdown-html"
    dangerouslySetInnerHTML={{ __html: renderTextPanelMarkdown(panel.options.content) }} />;
}

const KINDS = { timeseries: Lines, stat: Figure, text: Words };

function Panel({ panel, answered, theme, column }) {
  const { x, y, w, h } = panel.gridPos;
  const [width, height] = [w * (column + GAP) - GAP, h * (CELL + GAP) - GAP];
  const style = { position: 'absolute', left: x * (column + GAP), top: y * (CELL + GAP), width, height };
  if (panel.type === 'row') return <h4 style={style}>{panel.title}</h4>;
  const Kind = KINDS[panel.type];
  return <div style={style} data-panel={panel.id}>
    <PanelChrome title={panel.title} description={panel.description} width={width} height={height}
      displayMode={panel.transparent ? 'transparent' : 'default'}
      titleItems={panel.links?.map((link) => <span key={link.url}>↗</span>)}>
      {(inner, high) => <Kind panel={panel} answered={answered} theme={theme} width={inner} height={high} />}
    </PanelChrome>
  </div>;
}

window.draw = async (answered, mode) => {
  const theme = createTheme({ colors: { mode } });
  const { board, chosen } = answered;
  const column = (window.innerWidth - 2 * MARGIN - GAP * (COLUMNS - 1)) / COLUMNS;
  const bottom = Math.max(...board.panels.map(({ gridPos }) => (gridPos.y + gridPos.h) * (CELL + GAP)));
  const root = createRoot(document.getElementById('root'));
  const themed = (children) => <ThemeContext.Provider value={theme}>
    <GlobalStyles hackNoBackdropBlur isExtensionSidebarOpen={false} />{children}</ThemeContext.Provider>;
  flushSync(() => root.render(themed(null))); // names the fonts, which have to be there before anything is measured
  await Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 12px Inter`)));
  root.render(themed(
    <PanelContextProvider value={{ eventsScope: 'drawn', eventBus: new EventBusSrv() }}>
      <div style={{ padding: MARGIN, background: theme.colors.background.canvas }}>
        <h3>{board.title}
          {Object.entries(chosen).map(([label, value]) => <small key={label}> · {label}: {value}</small>)}</h3>
        <div style={{ position: 'relative', height: bottom }}>
          {board.panels.map((panel) =>
            <Panel key={panel.id} panel={panel} answered={answered} theme={theme} column={column} />)}
        </div>
      </div>
    </PanelContextProvider>));
};
