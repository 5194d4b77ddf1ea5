import { createServer } from 'node:net';
import { CliError } from '../errors.ts';

/**
 * Checked before anything is started, so that the reason is the first thing that is seen.
 * @returns the port itself, or a free one for 0
 * @throws CliError `port_in_use`, `port_forbidden`
 */
export async function claimPort(host: string, port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', (error: NodeJS.ErrnoException) => reject(refused(error, host, port)));
    server.listen({ host, port, exclusive: true }, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address ? address.port : port));
    });
  });
}

function refused(error: NodeJS.ErrnoException, host: string, port: number): Error {
  if (error.code === 'EADDRINUSE') {
    return new CliError(
      'port_in_use',
      `Port ${port} is in use, perhaps by another atelier. Stop that, or choose another port: ` +
        `ATELIER_PORT=${port + 1} npm start`,
    );
  }
  if (error.code === 'EACCES') {
    return new CliError(
      'port_forbidden',
      `Port ${port} needs privileges. Choose one from 1024 on by ATELIER_PORT.`,
    );
  }
  return new CliError('port_unusable', `Cannot listen on ${host}:${port}: ${error.message}`, {
    cause: error,
  });
}
